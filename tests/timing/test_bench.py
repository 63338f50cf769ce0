"""Measuring the models of an artifact."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lq.backends.prepare import prepare
from lq.deployment.deploy import export_artifact
from lq.ptq import calibrate
from lq.timing import bench as bench_module
from lq.timing.bench import bench
from tests.tiny import make_net, quicken_deployment


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("measured") / "int8"
    net, x = make_net().eval(), torch.randn(8, 1, 6, 6)
    prepared = prepare(copy.deepcopy(net))
    calibrate(prepared, [x])
    with pytest.MonkeyPatch.context() as monkeypatch:
        quicken_deployment(monkeypatch)
        export_artifact(prepared, [x], folder, ["torch", "onnx", "openvino", "pt2", "litert"])
    return folder, net


def test_every_model_at_every_batch_size(artifact: tuple[Path, nn.Module]) -> None:
    for package in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    lines: list[str] = []
    found = bench(*artifact, batch_sizes=(1, 3), min_time=0.01, compile=False, tell=lines.append)
    models = [row["model"] for row in found.rows if row["batch_size"] == 3]
    assert models == [
        "fp32 eager", "fp32 frozen", "fp32 fused", "fp32 onnx", "fp32 openvino", "fp32 litert",
        "int8 torch", "int8 onnx", "int8 openvino", "int8 pt2", "int8 litert",
    ]  # fmt: skip
    assert len(found.rows) == 2 * len(models)
    eager = found.rows[0]
    assert eager["speedup"] == 1.0
    assert all(row["per_second"] == pytest.approx(1000 * row["batch_size"] / row["latency_ms"]) for row in found.rows)
    assert all(row["size_mb"] > 0 for row in found.rows)
    assert any("pt2 is measured as it is" in note for note in found.notes)
    assert lines


def test_a_model_that_holds_a_lock_is_measured_and_left_as_it_is(artifact: tuple[Path, nn.Module]) -> None:
    net = copy.deepcopy(artifact[1]).train()
    net.lock = threading.Lock()  # type: ignore[assignment]
    found = bench(artifact[0], net, batch_sizes=[1], min_time=0.01, compile=False)
    assert {"fp32 eager", "fp32 frozen", "fp32 fused"} <= {row["model"] for row in found.rows}
    assert net.training


def test_without_a_float_model(artifact: tuple[Path, nn.Module]) -> None:
    found = bench(artifact[0], batch_sizes=[2], min_time=0.01, compile=False)
    assert all(row["model"].startswith("int8") and row["speedup"] is None for row in found.rows)


@pytest.mark.parametrize("sizes", [(), (0,)])
def test_bad_batch_sizes(artifact: tuple[Path, nn.Module], sizes: Any) -> None:
    with pytest.raises(ValueError, match=r"batch_sizes=\[.*must be one or more numbers from 1 up"):
        bench(artifact[0], batch_sizes=sizes)


def test_notes_say_where_int8_is_slower_and_what_stays_float() -> None:
    rows = [
        {"model": "fp32 eager", "batch_size": 1, "latency_ms": 9.0},
        {"model": "fp32 onnx", "batch_size": 1, "latency_ms": 2.0},
        {"model": "int8 onnx", "batch_size": 1, "latency_ms": 3.0},
        {"model": "int8 torch", "batch_size": 1, "latency_ms": 3.0},
    ]
    assert bench_module._verdicts(rows) == ["int8 onnx is 1.50x slower than fp32 onnx at batch size 1"]
    manifest = {"artifacts": {"onnx": {"float_layers": [f"layer{i} (Conv)" for i in range(7)]}, "torch": {}}}
    assert bench_module._float_layers(manifest) == [
        "int8 onnx runs in float: layer0 (Conv), layer1 (Conv), layer2 (Conv), layer3 (Conv), layer4 (Conv) and 2 more"
    ]


def test_what_cannot_be_loaded_or_exported_here_is_told(
    artifact: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = artifact

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("engine 'qnnpack' is not of this CPU")

    monkeypatch.setattr(bench_module, "load", fails)
    with pytest.raises(
        ValueError, match=r"nothing that can be timed here: .*int8 torch is not timed: engine 'qnnpack'"
    ):
        bench(directory, batch_sizes=(1,), min_time=0.01, compile=False)
