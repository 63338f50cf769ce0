"""Bits under a budget: the best choice, kept to the byte, applied as it was measured, measured once."""

from __future__ import annotations

import copy
import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lq.analysis.bits import AutoBits, BitChoice, choose_bits
from lq.analysis.bits.layers import at_width
from lq.analysis.bits.losses import RoundingLoss
from lq.backends.prepare import plan_of, prepare, set_phase
from lq.config.qconfig import LayerQConfig, QConfig
from lq.config.specs import WeightSpec
from lq.conversion.reference import ReferenceLayer, reference
from lq.ptq.calibrate import calibrate

WIDE = QConfig("x86_vnni", keep="nothing")


class Net(nn.Module):
    """Three layers of different sizes, one with a BatchNorm, one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.body, self.head = nn.Conv2d(4, 8, 3), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.body(torch.relu(self.norm(self.stem(x)))))
        return self.head(y.flatten(1))  # type: ignore[no-any-return]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def deployed_bytes(net: nn.Module, qconfig: QConfig, batches: list[Any]) -> int:
    """Every tensor of the deployed model, weights packed to the bits of their grids, zero points left out."""
    prepared = prepare(copy.deepcopy(net), qconfig, (batches[0][0],))
    calibrate(prepared, batches, show_progress=False)
    specs = {layer.name: layer.spec for layer in plan_of(prepared).sites.layers}  # type: ignore[union-attr]
    graph, total = reference(prepared), 0
    for name, part in graph.named_modules():
        for key, tensor in (*part.named_buffers(recurse=False), *part.named_parameters(recurse=False)):
            packed = isinstance(part, ReferenceLayer) and key == "weight"
            bits = specs[name].bits * tensor.numel() if packed else 8 * tensor.nbytes
            total += 0 if key == "weight_zero_point" else -(-bits // 8)
    return total


def test_the_choice_is_the_best_of_all_and_as_large_as_it_says(net: nn.Module, batches: list[Any]) -> None:
    found = choose_bits(net, batches, WIDE, AutoBits("size=350B", (2, 4, 8)), show_progress=False)
    layers, losses, saved = ("stem", "body", "head"), {}, {}
    whole = deployed_bytes(net, WIDE, batches)
    for layer, width in itertools.product(layers, (2, 4, 8)):
        losses[layer, width] = alone(net, batches, layer, width)
        grid = LayerQConfig(weight=WeightSpec(1 - 2 ** (width - 1), 2 ** (width - 1) - 1))
        qconfig = QConfig("x86_vnni", keep="nothing", overrides={layer: grid})
        saved[layer, width] = whole - deployed_bytes(net, qconfig, batches)
    trials = []
    for widths in itertools.product((2, 4, 8), repeat=3):
        bits = dict(zip(layers, widths, strict=True))
        size = whole - sum(saved[pair] for pair in bits.items())
        trials.append((size, sum(losses[pair] for pair in bits.items()), bits))
    best = min(loss for size, loss, _ in trials if size <= 350)
    assert found.chosen["expected"] == pytest.approx(best, rel=1e-3)  # BatchNorm folded in another order, in float32
    assert len({size for size, *_ in trials}) > 20, "and the budget leaves a choice"
    assert 5 < sum(size <= 350 for size, *_ in trials) < 22
    assert deployed_bytes(net, found.apply(WIDE), batches) == round(found.chosen["size_mb"] * 1e6) <= 350
    chosen = {name: option.spec.bits for name, option in found.layers.items() if option.spec is not None}
    assert any(bits == chosen and loss == pytest.approx(best) for _, loss, bits in trials)


@torch.no_grad()
def alone(net: nn.Module, batches: list[Any], layer: str, width: int) -> float:
    """KL divergence with one weight rounded by hand, without anything of lq's search."""
    twin = copy.deepcopy(net)
    exact = [net(x).log_softmax(1) for x, _ in batches]
    qconfig = at_width(WIDE, width)
    prepared = prepare(twin, QConfig(**{**vars(qconfig), "include": (layer,)}), (batches[0][0],))
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    rounded = [prepared.eval()(x).log_softmax(1) for x, _ in batches]  # activations without ranges stay float
    pairs = zip(exact, rounded, strict=True)
    return float(sum((a.exp() * (a - b)).sum(1).mean() for a, b in pairs) / len(batches))


def test_losses_of_all_layers_are_measured_together_as_in_the_applied_model(net: nn.Module, batches: list[Any]) -> None:
    found = choose_bits(net, batches, WIDE, AutoBits("effective_bits=3"), show_progress=False)
    prepared = prepare(copy.deepcopy(net), found.apply(WIDE), (batches[0][0],))
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    with torch.no_grad():
        pairs = [(net(x).log_softmax(1), prepared.eval()(x).log_softmax(1)) for x, _ in batches]
    divergence = sum(float((a.exp() * (a - b)).sum(1).mean()) for a, b in pairs) / len(pairs)
    assert found.loss == "KL divergence"
    assert found.chosen["measured"] == pytest.approx(divergence, rel=1e-3)  # BatchNorm folded in another order


@pytest.mark.parametrize("base", [WIDE, QConfig(weight=WeightSpec(-7, 7)), QConfig("x86_vnni", fuse_add=True)], ids=str)
def test_the_plan_has_the_grids_that_were_chosen(net: nn.Module, batches: list[Any], base: QConfig) -> None:
    found = choose_bits(net, batches, base, AutoBits("effective_bits=5"), show_progress=False)
    plan = plan_of(prepare(copy.deepcopy(net), found.apply(base), (batches[0][0],)))
    assert {row.name: row.weight for row in plan.layers} == {n: str(o.spec) for n, o in found.layers.items()}
    again = QConfig(**json.loads(json.dumps(found.settings(base))))
    assert again == found.apply(base)


@pytest.mark.parametrize("bits", [2.5, 3, 4.5, 6])
def test_the_mean_of_the_bits_is_within_the_budget(net: nn.Module, batches: list[Any], bits: float) -> None:
    found = choose_bits(net, batches, WIDE, AutoBits(f"effective_bits={bits}"), show_progress=False)
    stored = sum(p.numel() * o.stored for p, o in zip(weights_of(net), found.layers.values(), strict=True))
    assert stored / sum(p.numel() for p in weights_of(net)) == pytest.approx(found.chosen["effective_bits"])
    assert found.chosen["effective_bits"] <= bits


def weights_of(net: Any) -> list[torch.Tensor]:
    return [net.stem.weight, net.body.weight, net.head.weight]


def test_ends_and_overrides_keep_their_bits(net: nn.Module, batches: list[Any]) -> None:
    ends = choose_bits(net, batches, QConfig("x86_vnni"), AutoBits("effective_bits=7"), show_progress=False)
    assert [len(option.label) > 0 and option.spec.bits for option in ends.layers.values() if option.spec][::2] == [8, 8]
    six = QConfig("x86_vnni", keep="nothing", overrides={"body": {"weight": {"quant_min": -31, "quant_max": 31}}})
    found = choose_bits(net, batches, six, AutoBits("effective_bits=5.5"), show_progress=False)
    assert found.layers["body"].label == "int6 [-31, 31] per channel"
    assert found.apply(six).overrides["body"].weight == WeightSpec(-31, 31)


def test_other_settings_of_the_users_grids_stay(net: nn.Module, batches: list[Any]) -> None:
    mse = QConfig("x86_vnni", keep="nothing", overrides={"body": {"weight": {"observer": "mse"}}})
    found = choose_bits(net, batches, mse, AutoBits("effective_bits=4"), show_progress=False)
    plan = plan_of(prepare(copy.deepcopy(net), found.apply(mse), (batches[0][0],)))
    assert "mse" in {row.name: row.weight or "" for row in plan.layers}["body"]
    assert {row.name: row.weight for row in plan.layers} == {n: str(o.spec) for n, o in found.layers.items()}


def test_float_is_a_width(net: nn.Module, batches: list[Any]) -> None:
    found = choose_bits(net, batches, WIDE, AutoBits("effective_bits=20", (2, 32)), show_progress=False)
    assert found.exclude
    applied = found.apply(WIDE)
    assert applied.exclude == found.exclude
    plan = plan_of(prepare(copy.deepcopy(net), applied, (batches[0][0],)))
    assert {row.name for row in plan.layers if row.weight is None} == set(found.exclude)


def test_exporters_that_store_whole_bytes_or_nibbles_get_other_choices(net: nn.Module, batches: list[Any]) -> None:
    found = choose_bits(net, batches, WIDE, AutoBits("effective_bits=6"), exporters=["onnx"], show_progress=False)
    assert {option.stored for option in found.layers.values()} == {4, 8}
    assert {option.spec.bits for option in found.layers.values() if option.spec} == {4, 8}, "2 bits would take 4"
    with pytest.raises(ValueError, match="it can be from effective_bits=8 to effective_bits=8"):
        choose_bits(net, batches, WIDE, AutoBits("effective_bits=6"), exporters=["litert"], show_progress=False)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("size=0.0001MB", r"budget size=0.0001MB is less than the widths allow: it can be from size=0.\d+MB to size=0"),
        ("effective_bits=1.9", "it can be from effective_bits=2 to effective_bits=8. Or allow fewer bits"),
        ("size=100MB", r"no limit: the float model has size=0.0017\d+MB; it can be from size=0.\d+MB"),
        ("effective_bits=32", "no limit: the float model has effective_bits=32; it can be from effective_bits=2"),
    ],
)
def test_impossible_budgets_say_which_are_possible(
    net: nn.Module, batches: list[Any], budget: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose_bits(net, batches, WIDE, AutoBits(budget), show_progress=False)


def test_layers_without_a_choice_are_named(net: nn.Module, batches: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"There is one choice for stem, head: first and last layers keep the bits"):
        choose_bits(net, batches, QConfig("x86_vnni"), AutoBits("effective_bits=2"), show_progress=False)
    with pytest.raises(ValueError, match=r"There is one choice for .*and files store the bits that their format has"):
        choose_bits(net, batches, WIDE, AutoBits("effective_bits=6"), exporters=["litert"], show_progress=False)


def test_the_possible_range_is_possible(net: nn.Module, batches: list[Any]) -> None:
    with pytest.raises(ValueError, match="less than the widths allow") as error:
        choose_bits(net, batches, WIDE, AutoBits("size=1B", (2, 8)), show_progress=False)
    least = str(error.value).partition("from ")[2].partition(" to")[0]
    found = choose_bits(net, batches, WIDE, AutoBits(least, (2, 8)), show_progress=False)
    assert {option.width for option in found.layers.values()} == {2}


def test_losses_are_kept_and_serve_other_budgets(
    net: nn.Module, batches: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, measured = tmp_path / "losses.json", []
    measure = RoundingLoss.of
    monkeypatch.setattr(RoundingLoss, "of", lambda self, grids: measured.append(len(grids)) or measure(self, grids))

    def choose(budget: str, model: nn.Module = net) -> BitChoice:
        measured.clear()
        return choose_bits(model, batches, WIDE, AutoBits(budget, (2, 8), 2, kept), show_progress=False)

    choose("effective_bits=4")
    assert measured.count(1) == 6
    first = json.loads(kept.read_text())["results"]
    choose("effective_bits=6")
    assert measured.count(1) == 0
    other = Net().eval()
    choose("effective_bits=6", other)
    assert measured.count(1) == 6, "another network"
    assert json.loads(kept.read_text())["results"] != first


def test_an_interrupted_search_goes_on(
    net: nn.Module, batches: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = AutoBits("effective_bits=4", (2, 8), 2, tmp_path / "losses.json")
    measure, calls = RoundingLoss.of, []

    def break_off(self: RoundingLoss, grids: Any) -> float:
        calls.append(grids)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(self, grids)

    monkeypatch.setattr(RoundingLoss, "of", break_off)
    with pytest.raises(KeyboardInterrupt):
        choose_bits(net, batches, WIDE, options, show_progress=False)
    calls.extend([None] * 10)
    del calls[:4]
    choose_bits(net, batches, WIDE, options, show_progress=False)
    assert sum(grids is not None and len(grids) == 1 for grids in calls) == 3


def test_without_labels_noise_counts(net: nn.Module, batches: list[Any]) -> None:
    inputs = [x for x, _ in batches]
    found = choose_bits(net, inputs, WIDE, AutoBits("effective_bits=4"), show_progress=False)
    assert found.loss == "noise/signal"
    by_size = {row["name"]: row["measured"] for row in found.rows if row["name"].startswith("all")}
    assert by_size["all 2 bits"] > by_size["all 4 bits"] > by_size["all 8 bits"] > 0  # type: ignore[operator]


def test_the_float_model_is_left_as_it_was(net: nn.Module, batches: list[Any]) -> None:
    before, training = copy.deepcopy(net.state_dict()), net.train().training
    choose_bits(net, batches, WIDE, AutoBits("effective_bits=4", (2, 8)), show_progress=False)
    assert training is net.training is True
    assert type(net) is Net
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


class Unusual(nn.Module):
    """Weight norm, a layer that is called twice, a function, a shared weight, a transposed convolution, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 4, 3))
        self.twice, self.up, self.weight = (
            nn.Conv2d(4, 4, 1),
            nn.ConvTranspose2d(4, 4, 2),
            nn.Parameter(torch.ones(8, 4)),
        )
        self.left, self.right, self.attention = nn.Linear(8, 8), nn.Linear(8, 8), nn.MultiheadAttention(8, 2)
        self.right.weight = self.left.weight

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        x = self.up(self.twice(self.twice(self.first(x)))).mean((2, 3))
        x = self.right(torch.relu(self.left(nn.functional.linear(x, self.weight))))
        return {"scores": self.attention(x[None], x[None], x[None])[0][0] * scale}


def test_layers_of_all_kinds_get_the_bits_that_were_chosen(batches: list[Any]) -> None:
    torch.manual_seed(0)
    net = Unusual().eval()
    found = choose_bits(net, batches, WIDE, AutoBits("effective_bits=3.5", (2, 4, 8)), show_progress=False)
    plan = plan_of(prepare(copy.deepcopy(net), found.apply(WIDE), (batches[0][0],)))
    grids = {row.name: row.weight or "" for row in plan.layers}
    assert grids.keys() == found.layers.keys() >= {"first", "twice", "up", "linear", "left", "attention.linear"}
    assert {n: g[:4] for n, g in grids.items()} == {n: o.label[:4] for n, o in found.layers.items()}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"widths": (1, 8)}, ValueError, "width 1 must be from 2 to 8 bits, or 32 for float"),
        ({"widths": ()}, ValueError, "leave no choice"),
        ({"widths": (32,)}, ValueError, "leave no choice"),
        ({"widths": "48"}, TypeError, "must be a list of bits"),
        ({"widths": (4.5,)}, TypeError, "not a whole number"),
        ({"batches": 0}, ValueError, "batches=0 must be at least 1"),
        ({"budget": "size=3"}, ValueError, "has no unit"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AutoBits(**settings)


def test_vendors_quantizers_decide_themselves(net: nn.Module, batches: list[Any]) -> None:
    vendor = QConfig(backend="pt2e", quantizer="x86_inductor")
    with pytest.raises(ValueError, match="backend 'pt2e' decides on the bits"):
        choose_bits(net, batches, vendor, AutoBits("effective_bits=4"))


def test_a_model_may_hold_what_cannot_be_copied() -> None:
    model: Any = Net()
    model.lock = threading.Lock()
    assert choose_bits(model, [torch.randn(4, 1, 6, 6)], WIDE, "effective_bits=5").chosen["effective_bits"] <= 5
