"""Bits of activations: the best choice for a mean, with the ranges of each grid, applied as it was measured."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lq.analysis.bits import AutoBits, BitChoice, choose_bits
from lq.analysis.bits.activations import activation_grid
from lq.analysis.bits.choice import ActivationBits
from lq.backends.prepare import plan_of, prepare, set_phase, state_of
from lq.config.qconfig import LayerQConfig, QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.ptq.calibrate import calibrate

WIDTHS = (2, 4, 8)
FREE = QConfig("x86_vnni", keep="nothing")


class Net(nn.Module):
    """A layer that is called twice, an addition, an absorbed ReLU, a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        y = y + self.twice(torch.relu(self.twice(torch.relu(y))))
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def choose(net: nn.Module, batches: list[Any], bits: float, qconfig: QConfig = FREE, **given: Any) -> ActivationBits:
    return both(net, batches, bits, qconfig, **given).activations  # type: ignore[return-value]


def both(net: nn.Module, batches: list[Any], bits: float, qconfig: QConfig = FREE, **given: Any) -> BitChoice:
    options = AutoBits(**{"budget": "effective_bits=5", "widths": WIDTHS, "activation_bits": bits, **given})
    return choose_bits(net, batches, qconfig, options, show_progress=False)


@torch.no_grad()
def divergence(net: nn.Module, batches: list[Any], bits: dict[str, int], weights: bool = False) -> float:
    """By hand, without lq's search: prepared with these grids, histograms, all else in float."""
    overrides = {name: LayerQConfig(activation=ActivationSpec(0, 2**width - 1)) for name, width in bits.items()}
    prepared = prepare(copy.deepcopy(net), replace(FREE, overrides=overrides), (batches[0][0],))
    state_of(prepared).observe_by("histogram")
    calibrate(prepared, batches, show_progress=False)
    state = state_of(prepared)
    state.settle()
    named = {row.name: row.after for row in plan_of(prepared).tensors}
    for slot, name in enumerate(state.names):
        if named[name] not in bits:
            state.min_val[slot], state.max_val[slot] = -torch.inf, torch.inf
    if not weights:
        for part in state.modules():
            if hasattr(part, "off"):
                part.off = True
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    pairs = [(net(x).log_softmax(1), prepared.eval()(x).log_softmax(1)) for x, _ in batches]
    return sum(float((a.exp() * (a - b)).sum(1).mean()) for a, b in pairs) / len(pairs)


def test_the_choice_is_the_best_of_all(net: nn.Module, batches: list[Any]) -> None:
    found = choose(net, batches, 3.9)
    names = list(found.options)
    values = {name: (3 if name == "head" else 4 if name == "mean" else 36 if name == "x" else 144) for name in names}
    losses = {(name, width): divergence(net, batches, {name: width}) for name in names for width in WIDTHS}
    trials = []
    for widths in itertools.product(WIDTHS, repeat=len(names)):
        bits = dict(zip(names, widths, strict=True))
        mean = sum(values[name] * width for name, width in bits.items()) / sum(values.values())
        trials.append((sum(losses[pair] for pair in bits.items()), mean, bits))
    loss, mean, bits = min((trial for trial in trials if trial[1] <= 3.9), key=lambda trial: trial[0])
    assert found.chosen["expected"] == pytest.approx(loss, rel=1e-2)
    assert found.chosen["bits"] == pytest.approx(mean)
    assert {name: option.spec.bits for name, option in found.options.items()} == bits
    assert len(set(bits.values())) > 1, "and there is a choice"
    assert found.chosen["measured"] == pytest.approx(divergence(net, batches, bits), rel=1e-2)


def test_rows_say_what_the_same_bits_everywhere_lose(net: nn.Module, batches: list[Any]) -> None:
    found = choose(net, batches, 3.9)
    rows = {row["name"]: row for row in found.rows if row["name"]}
    assert list(rows) == ["all 2 bits", "chosen", "all 4 bits", "all 8 bits"]
    assert [row["bits"] for name, row in rows.items() if name != "chosen"] == [2, 4, 8]
    names = list(found.options)
    assert rows["all 4 bits"]["measured"] == pytest.approx(divergence(net, batches, dict.fromkeys(names, 4)), rel=1e-2)
    expected = [row["expected"] for row in found.rows if not row["name"]]
    assert expected == sorted(expected, reverse=True), "the frontier falls"


def test_weights_and_activations_together_are_what_is_prepared(net: nn.Module, batches: list[Any]) -> None:
    found = both(net, batches, 3.9)
    prepared = prepare(copy.deepcopy(net), found.apply(FREE), (batches[0][0],))
    state_of(prepared).observe_by("histogram")
    calibrate(prepared, batches, show_progress=False)
    with torch.no_grad():
        pairs = [(net(x).log_softmax(1), prepared.eval()(x).log_softmax(1)) for x, _ in batches]
    loss = sum(float((a.exp() * (a - b)).sum(1).mean()) for a, b in pairs) / len(pairs)
    assert found.activations is not None
    assert found.activations.with_weights == pytest.approx(loss, rel=1e-2)
    plan, options = plan_of(prepared), found.activations.options
    assert {row.after: row.grid for row in plan.tensors} == {name: str(option.spec) for name, option in options.items()}
    assert {row.name: row.weight for row in plan.layers} == {name: str(o.spec) for name, o in found.layers.items()}
    assert QConfig(**json.loads(json.dumps(found.settings(FREE)))) == found.apply(FREE)
    assert f"{found.activations.chosen['bits']:.3g} bits per activation" in str(found)


def test_what_is_fixed_keeps_its_bits(net: nn.Module, batches: list[Any]) -> None:
    own = {"add": LayerQConfig(activation=ActivationSpec(0, 127)), "head": LayerQConfig(weight=WeightSpec(-7, 7))}
    found = both(net, batches, 6, QConfig("x86_vnni", overrides=own))
    assert found.activations is not None
    bits = {name: option.spec.bits for name, option in found.activations.options.items()}
    assert [bits["x"], bits["mean"], bits["head"]] == [8, 8, 8], "the ends"
    assert bits["add"] == 7
    assert found.apply(QConfig("x86_vnni", overrides=own)).overrides["head"].weight == WeightSpec(-7, 7)


def test_the_users_observers_stay(net: nn.Module, batches: list[Any]) -> None:
    own = replace(
        FREE,
        activation=ActivationSpec(observer="percentile", percentile=99.0),
        overrides={"add": LayerQConfig(activation=ActivationSpec(observer="minmax"))},
    )
    found = both(net, batches, 3.9, own)
    plan = plan_of(prepare(copy.deepcopy(net), found.apply(own), (batches[0][0],)))
    observers = {row.after: row.grid.rpartition(" ")[2] for row in plan.tensors}
    assert observers.pop("add") == "minmax"
    assert set(observers.values()) == {"percentile"}
    assert {row.after: row.grid for row in plan.tensors} == {
        name: str(option.spec)
        for name, option in found.activations.options.items()  # type: ignore[union-attr]
    }


def test_every_loss_is_kept_and_found_again(net: nn.Module, batches: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "losses.json"
    first = choose(net, batches, 3.9, resume_file=file)
    results = json.loads(file.read_text())["results"]
    kept = {name: loss for name, loss in results.items() if name.startswith("activation of ")}
    assert len(kept) == sum(len(WIDTHS) for _ in first.options)
    key = "activation of add: " + str(first.options["add"].spec)
    data = json.loads(file.read_text())
    data["results"][key] = 1e9
    file.write_text(json.dumps(data))
    again = choose(net, batches, 3.9, resume_file=file)
    assert again.options["add"] != first.options["add"], "what the file says is believed"


def test_the_model_and_its_state_are_left_alone(net: nn.Module, batches: list[Any]) -> None:
    before = copy.deepcopy(net.state_dict())
    choose(net, batches, 3.9)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert type(net) is Net


@pytest.mark.parametrize(
    ("preset", "width", "ends"),
    [
        *(("portable", 8, (0, 255)), ("portable", 3, (0, 7)), ("tensorrt", 8, (-128, 127)), ("tensorrt", 4, (-8, 7))),
        ("mcu", 2, (-2, 1)),
    ],
)
def test_grids_follow_the_preset(preset: str, width: int, ends: tuple[int, int]) -> None:
    grid = activation_grid(QConfig(preset, activation=ActivationSpec(observer="minmax")), width)
    assert (grid.quant_min, grid.quant_max) == ends
    assert grid.observer == "minmax"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"activation_bits": "4"}, TypeError, "activation_bits='4' .str. is not a number"),
        ({"activation_bits": float("nan")}, ValueError, "activation_bits=nan is not a number"),
        ({"activation_bits": 8}, ValueError, "less than 8, which all activations have without it"),
        ({"activation_bits": 1.5}, ValueError, "must be at least 2, the smallest of the widths"),
        ({"activation_bits": 3, "widths": (4, 8)}, ValueError, "must be at least 4"),
        ({"activation_bits": 4, "widths": (4, 8, 32)}, ValueError, "Leave 32 out of the widths"),
        ({"activation_bits": 4, "budget": "latency=0.6@onnx"}, ValueError, "int8 kernels take the same time"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AutoBits(**settings)


def test_a_mean_that_the_ends_do_not_allow_is_refused_before_anything_is_measured(
    net: nn.Module, batches: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lq.analysis.bits.search.RoundingLoss", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match=r"the mean can be from 2\.\d+\. There is one choice for x, mean, head"):
        choose(net, batches, 2.1, QConfig("x86_vnni"))
