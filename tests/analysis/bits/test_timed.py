"""Budgets of time: the limit holds for what is measured, and the choice goes as far as it can."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lq
from lq.analysis.bits import AutoBits, choose_bits
from lq.analysis.bits.latency import LatencyMeter
from lq.backends.prepare import plan_of, prepare
from lq.callback import QATCallback
from lq.config.qconfig import LayerQConfig, QConfig
from lq.config.specs import WeightSpec
from lq.timing.stopwatch import Stopwatch
from tests.tiny import Tiny, make_trainer, quicken_deployment, train_loader, val_loader

LAYERS = ("0", "2", "4", "6", "8", "10")


def make_net() -> nn.Module:
    torch.manual_seed(0)
    convs = [nn.Conv2d(1 if i == 0 else 4, 4, 3, padding=1) for i in range(5)]
    return nn.Sequential(*(part for conv in convs for part in (conv, nn.ReLU())), nn.Linear(6, 3)).eval()


@pytest.fixture
def batches() -> list[Any]:
    torch.manual_seed(1)
    return [torch.randn(8, 1, 6, 6)]


def quantized(prepared: nn.Module) -> set[str]:
    sites = plan_of(prepared).sites
    assert sites is not None
    return {layer.name for layer in sites.layers}


class Clock:
    """Stands for the time that files take: int8 half of float, each layer in float its share, conversions a tenth."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, conversion: float = 0.1) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.conversion = conversion
        clock = self

        def share(meter: LatencyMeter, in_float: Sequence[str] = ()) -> float:
            clock.asked.append(tuple(in_float))
            meter.float_ms = 2.0
            return clock.share(in_float)

        monkeypatch.setattr(LatencyMeter, "share", share)

    def share(self, in_float: Sequence[str]) -> float:
        kinds = [False, *(layer in in_float for layer in LAYERS), False]
        changes = sum(a != b for a, b in itertools.pairwise(kinds))
        return 0.5 + 0.5 * sum(kinds) / len(LAYERS) + self.conversion * changes / 2


def test_the_measured_latency_is_within_the_budget(monkeypatch: pytest.MonkeyPatch, batches: list[Any]) -> None:
    clock = Clock(monkeypatch)
    for limit in (0.55, 0.7, 0.8, 0.95):
        found = choose_bits(make_net(), batches, options=f"latency={limit}@torch", show_progress=False)
        taken = clock.share([name for name, option in found.layers.items() if option.spec is None])
        assert found.chosen["latency_ms"] == pytest.approx(2.0 * taken)
        assert taken <= limit
        assert found.chosen["expected"] <= max(row["expected"] for row in found.rows)
        if limit >= 0.8:  # one layer, with its conversions
            assert taken > 0.5


def test_without_conversions_the_budget_is_used_up(monkeypatch: pytest.MonkeyPatch, batches: list[Any]) -> None:
    clock = Clock(monkeypatch, conversion=0.0)
    found = choose_bits(make_net(), batches, options="latency=1.7ms@torch", show_progress=False)
    in_float = [name for name, option in found.layers.items() if option.spec is None]
    assert len(in_float) == 4
    assert clock.share(in_float) == pytest.approx(0.5 + 0.5 * 4 / 6)
    assert clock.asked[0] == ()  # all in int8, with which everything is compared
    names = [row["name"] for row in found.rows]
    assert {"all 8 bits", "all float", "chosen", ""} == set(names)
    assert [row["latency_ms"] for row in found.rows] == sorted(row["latency_ms"] or 0.0 for row in found.rows)


def test_the_most_harmful_layers_stay_in_float(monkeypatch: pytest.MonkeyPatch, batches: list[Any]) -> None:
    """Activations count, which hurt where one channel is far larger than the others."""
    Clock(monkeypatch, conversion=0.0)
    net = make_net()
    with torch.no_grad():
        net.get_submodule("2").weight[0] *= 300.0  # type: ignore[index,operator]
        net.get_submodule("4").weight[:, 0] /= 300.0  # type: ignore[index,operator]
    found = choose_bits(net, batches, options="latency=0.7@torch", show_progress=False)
    assert "4" in found.exclude
    qconfig = found.apply("portable")
    prepared = prepare(make_net(), qconfig, (batches[0],))
    assert quantized(prepared) == set(LAYERS) - set(found.exclude)
    assert found.chosen["measured"] < next(r["measured"] for r in found.rows if r["name"] == "all 8 bits")  # type: ignore[operator]


def test_layers_whose_bits_are_given_keep_them(monkeypatch: pytest.MonkeyPatch, batches: list[Any]) -> None:
    Clock(monkeypatch)
    given = QConfig(overrides={"4": LayerQConfig(weight=WeightSpec(-7, 7))})
    found = choose_bits(make_net(), batches, given, "latency=0.95@torch", show_progress=False)
    assert found.layers["4"].spec == WeightSpec(-7, 7)


def test_budgets_that_leave_no_choice(monkeypatch: pytest.MonkeyPatch, batches: list[Any]) -> None:
    Clock(monkeypatch)
    took = "all layers in int8 take 1 ms here, 0.5 of the float model's"
    with pytest.raises(ValueError, match=rf"less than int8 takes: {took}\. Write at least latency=0.505@torch\."):
        choose_bits(make_net(), batches, options="latency=0.4@torch", show_progress=False)
    with pytest.raises(ValueError, match=r"no limit: the float model takes latency=2ms@torch; all layers"):
        choose_bits(make_net(), batches, options="latency=1s@torch", show_progress=False)
    with pytest.raises(ValueError, match=r"int8 kernels take the same time for fewer bits.*Leave widths out"):
        AutoBits("latency=0.5@torch", (4, 8))


@pytest.mark.parametrize("runtime", ["torch", "onnx", "openvino"])
def test_what_a_runtime_takes_is_measured(
    runtime: str, monkeypatch: pytest.MonkeyPatch, batches: list[Any], tmp_path: Path
) -> None:
    if runtime != "torch":
        pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime))
    monkeypatch.setattr("lq.timing.stopwatch.SECONDS", 0.01)
    model, seen = make_net(), []

    def calibration(prepared: nn.Module) -> None:
        seen.append(len(quantized(prepared)))
        lq.calibrate(prepared, batches, show_progress=False)

    with Stopwatch() as stopwatch:
        example: Any = ((batches[0],), {})
        meter = LatencyMeter(runtime, model, QConfig(), example, calibration, tmp_path, stopwatch)
        shares = [meter.share(), meter.share(["2", "4"])]
    assert seen == [6, 4]
    assert all(share > 0 for share in shares)
    assert meter.float_ms > 0


def test_the_callback_leaves_them_in_float(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quicken_deployment(monkeypatch)

    def share(meter: LatencyMeter, in_float: Sequence[str] = ()) -> float:
        meter.float_ms = 2.0
        return 0.5 + 0.2 * len(in_float)

    monkeypatch.setattr(LatencyMeter, "share", share)
    module, qat = Tiny(), QATCallback(auto_bits="latency=0.8@torch")
    with pytest.warns(UserWarning, match="only 25% of the work"):
        make_trainer(tmp_path, qat, max_epochs=1).fit(module, train_loader(), val_loader())
    assert qat.bits is not None
    assert len(qat.bits.exclude) == 1
    assert qat.bits.exclude[0] not in quantized(module.model)
    assert "latency=0.8@torch: 1.4 ms" in str(qat.bits)


def test_a_runtime_needs_its_exporter() -> None:
    with pytest.raises(ValueError, match=r"not among the exporters; write exporters=\['torch', 'openvino'\]"):
        QATCallback(auto_bits="latency=0.5@openvino")
