import io
import json

import pytest
from rich.console import Console

from lq.report.layers import layer_table, print_layers, write_layers

SQNR = [
    {"name": "conv", "kind": "weight", "sqnr_db": 41.26},
    {"name": "conv", "kind": "activation", "sqnr_db": 38.0, "accumulated_db": float("inf"), "int8_db": None},
    {"name": "fc", "kind": "weight", "sqnr_db": 20.0},
]
HARM = {"direction": "one", "metric": "accuracy"}
SENSITIVITY = [
    {"layer": "conv", "loss": 0.01, "share": 0.2, **HARM},
    {"layer": "fc", "loss": 0.03, "share": 0.6, **HARM},
]
COSTS = [{"layer": "conv", "macs": 9, "int8_ms": 0.0123, "float_ms": None}]
FOUND = {"sqnr": SQNR, "sensitivity": SENSITIVITY, "costs": COSTS, "exclude": ["fc"]}


def lines(function, *args):
    console = Console(file=io.StringIO(), width=40, color_system=None)
    function(*args, console)
    return console.file.getvalue().splitlines()


def test_the_worst_layer_comes_first_and_lines_are_not_broken():
    printed = lines(print_layers, FOUND, "1 layer in float\n  exclude fc")
    fc, conv = (line.split() for line in [line for line in printed if line.startswith((" fc", " conv"))])
    assert fc == ["fc", "20.0", "-", "-", "75.0%", "-", "-"]
    assert conv == ["conv", "41.3", "38.0", "inf", "25.0%", "0.012", "-"]
    assert printed[-3:] == [" 1 layer in float", "   exclude fc", ' qconfig: {exclude: ["fc"]}']


def test_nothing_to_exclude_gives_no_line_of_yaml():
    assert not any("qconfig" in line for line in lines(print_layers, {**FOUND, "exclude": []}, "nothing to exclude"))


def test_files_are_json_and_pictures(tmp_path, monkeypatch):
    files = write_layers(tmp_path / "new", FOUND, ["fc"])
    assert [file.name for file in files] == ["analysis.json", "sqnr.png", "sensitivity.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files[1:])
    found = json.loads(files[0].read_text(), parse_constant=pytest.fail)
    assert found["sqnr"][1]["accumulated_db"] is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert len(write_layers(tmp_path, FOUND)) == 1


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="layer_table: no rows"):
        layer_table(SQNR, [])
