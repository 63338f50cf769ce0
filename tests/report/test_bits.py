import io
import json

import yaml
from rich.console import Console

from lq.config.qconfig import QConfig
from lq.report.bits import print_bits, write_bits

ROWS = [
    {"name": "", "size_mb": 0.2, "effective_bits": 2.0, "expected": 1.2, "measured": None},
    {"name": "all 2 bits", "size_mb": 0.2, "effective_bits": 2.0, "expected": 1.2, "measured": 2.25},
    {"name": "chosen", "size_mb": 0.41234, "effective_bits": 4.2, "expected": 0.00213, "measured": 0.00273},
]


def test_a_line_for_each_row_and_the_choice():
    console = Console(file=io.StringIO(), width=40, color_system=None)
    print_bits(ROWS, "KL divergence", "size=0.42MB: 0.4 MB\n  2 bits: " + "a, " * 100 + "b", console)
    printed = console.file.getvalue().splitlines()
    assert ["chosen", "0.412", "4.20", "0.00213", "0.00273"] in [line.split() for line in printed]
    assert ["0.200", "2.00", "1.2", "-"] in [line.split() for line in printed]
    assert printed[-1].strip() == "2 bits: " + "a, " * 100 + "b"


def test_sizes_of_a_small_model_differ():
    console = Console(file=io.StringIO(), width=60, color_system=None)
    sizes = {"all 2 bits": 0.000152, "chosen": 0.000304, "all 8 bits": 0.000608}
    rows = [{**ROWS[0], "name": name, "size_mb": size} for name, size in sizes.items()]
    print_bits(rows, "KL divergence", "", console)
    assert all(str(size) in console.file.getvalue() for size in ("0.000152", "0.000304", "0.000608"))


def test_the_yaml_is_a_qconfig_and_the_rest_is_there(tmp_path, monkeypatch):
    settings = {"preset": "portable", "overrides": {"fc": {"weight": {"quant_min": -7, "quant_max": 7}}}}
    files = write_bits(tmp_path / "new", settings, ROWS, "KL divergence", "lq bits --budget size=0.42MB")
    assert [file.name for file in files] == ["bits.yaml", "frontier.json", "frontier.png"]
    assert QConfig(**yaml.safe_load(files[0].read_text())) == QConfig(**settings)
    assert files[0].read_text().startswith("# lq bits --budget size=0.42MB\n")
    assert json.loads(files[1].read_text())["rows"] == ROWS
    assert files[2].read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert len(write_bits(tmp_path, settings, ROWS, "KL divergence", "")) == 2
