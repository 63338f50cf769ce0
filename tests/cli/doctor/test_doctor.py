"""``lq doctor`` from the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from lq.cli.doctor import examine
from lq.cli.doctor.tables import advice, print_findings
from lq.core import native

SLOWER = "training on the CPU takes PyTorch's own operations, which are slower"


def test_json_is_all_that_is_printed(run_lq: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run_lq("doctor", "--quick", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] == torch.__version__
    assert found["cpu"]["features"]
    assert found["engines"]
    assert found["kernels"]["works"] == (native.library().functions is not None)


def test_tables_show_every_row(run_lq: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run_lq("doctor", "--quick")
    out = capsys.readouterr().out
    for name in ("instructions", "engines", "portable", "x86_vnni", "torch", "executorch"):
        assert f" {name} " in out


def test_what_is_wrong_comes_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    found = examine(quick=True)
    found["versions"]["torchao"] = found["tools"]["C++ compiler"] = None
    found["kernels"] = {"works": False, "about": "no C compiler found: install one"}
    found["exporters"] = [
        {"name": "onnx", "packages": {"onnx": None}, "works": False, "error": "needs onnx", "install": "pip install x"}
    ]
    found["presets"][0] |= {"works": False, "sqnr_db": 7.5}
    print_findings(found)
    out = capsys.readouterr().out
    assert "gives wrong results on this CPU" in out
    assert [line.split(":")[0] for line in advice(found)] == ["onnx", "pt2", "pt2", SLOWER]
    assert f"{SLOWER}: no C compiler found: install one" in out
    assert "onnx: pip install x" in out
