"""What Arm's compiler says of files that lq has written."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from lq.export.formats.litert import FILE
from lq.export.formats.mcu.vela import check_npu, estimate
from tests.export.nets import IMAGES, calibrated, example_of, residual, round_trip

pytest.importorskip("ai_edge_litert")
vela = pytest.importorskip("ethosu.vela")


def test_a_file_of_integers_is_the_npu_s_alone(tmp_path: Path) -> None:
    pytest.importorskip("tflite_micro")
    round_trip("mcu", residual("mcu"), example_of(IMAGES), tmp_path)
    small, large = (estimate(tmp_path / "int8.mcu.tflite", npu) for npu in ("ethos-u55-32", "ethos-u55-256"))
    assert small.on_cpu == large.on_cpu == ()
    assert small.operators >= 9, "nine of the net, and what the compiler makes of them"
    assert small.cycles > 63_040 / 32, "the multiply-accumulates of the net, at 32 in a cycle"
    assert large.cycles < small.cycles
    assert 1 < small.sram_kib < 50
    assert "100% of" in str(small)


def test_operators_of_the_cpu_are_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.LayerNorm(6), nn.Conv2d(4, 2, 1))
    round_trip("litert", calibrated(net, example_of(IMAGES), "litert"), example_of(IMAGES), tmp_path)
    found = estimate(tmp_path / FILE)
    assert any("layer_norm" in name for name in found.on_cpu)
    assert f"on the CPU: {found.on_cpu[0]}, " in str(found)


def test_what_cannot_be_compiled_is_told(tmp_path: Path) -> None:
    (tmp_path / "other.tflite").write_bytes(b"no flatbuffer")
    with pytest.raises(RuntimeError, match=r"vela cannot compile other\.tflite: \S"):
        estimate(tmp_path / "other.tflite")


def test_an_unknown_npu_and_a_missing_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"npu='ethos' must be one of ethos-u55-32, "):
        check_npu("ethos")
    with pytest.raises(ValueError, match=r"npu='ethos' must be one of ethos-u55-32, "):
        estimate(tmp_path / "any.tflite", "ethos")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install ethos-u-vela"):
        estimate(tmp_path / "any.tflite")
