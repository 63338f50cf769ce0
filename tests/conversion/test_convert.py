from __future__ import annotations

import copy
import enum
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lq.backends.prepare import prepare, set_phase, state_of
from lq.compat.deprecations import quiet_torchscript
from lq.config.presets import PRESETS
from lq.config.qconfig import QConfig
from lq.conversion.convert import convert
from lq.conversion.int8 import Int8Layer
from lq.conversion.reference import reference
from lq.metrics import sqnr
from lq.ptq import calibrate


class Net(nn.Module):
    def __init__(self, body: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.wide, self.fc, self.pool = nn.Conv2d(8, 4, 1), nn.Linear(4, 3), nn.MaxPool2d(2)
        self.norm, self.token = nn.BatchNorm2d(8), nn.Parameter(torch.randn(4, 1, 1))
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


BODIES: dict[str, Callable[[Net, Tensor], Any]] = {
    "add": lambda n, x: n.c(n.a(x) + n.b(x)),
    "add relu": lambda n, x: n.c(F.relu(n.a(x) + n.b(x))),
    "add relu6": lambda n, x: n.c(F.relu6(n.a(x) + n.b(x))),
    "mul": lambda n, x: n.c(n.a(x) * n.b(x)),
    "cat": lambda n, x: n.wide(torch.cat([n.a(x), F.relu(n.b(x))], dim=1)),
    "cat relu": lambda n, x: n.wide(F.relu(torch.cat((n.a(x), n.b(x)), 1))),
    "cat of a tensor with itself": lambda n, x: n.wide(torch.cat([n.a(x)] * 2, 1)),
    "float norm behind cat": lambda n, x: n.wide(F.relu(n.norm(torch.cat([n.a(x), n.b(x)], 1)))),
    "gate": lambda n, x: n.c(torch.sigmoid(n.b(F.adaptive_avg_pool2d(n.a(x), 1))) * n.a(x)),
    "pool and views": lambda n, x: n.fc(n.pool(F.relu(n.a(x))).flatten(2).permute(0, 2, 1).reshape(-1, 4)),
    "chunks": lambda n, x: n.wide(torch.cat(n.wide(torch.cat([n.a(x), n.b(x)], 1)).repeat(1, 2, 1, 1).chunk(2, 1), 1)),
    "parameter": lambda n, x: n.c(n.a(x) + n.token),
    "shape arithmetic": lambda n, x: n.fc(n.a(x).view(x.shape[0], 4, -1).mean(2)),
    "interpolation": lambda n, x: n.b(F.interpolate(n.a(x), scale_factor=2.0)),
    "product of Kronecker": lambda n, x: n.c(torch.kron(n.a(x)[:, :, 1:3], torch.ones(1, 1, 2))),
    "called twice": lambda n, x: n.a(F.relu(n.a(x))),
    "relu6 on a branch": lambda n, x: n.c(F.relu6(n.a(x) * 4)) + n.b(x),
    "tuple": lambda n, x: (n.a(x), n.b(x).sum()),
    "dict": lambda n, x: {"out": n.fc(n.a(x).mean((2, 3))), "features": [n.b(x)], "none": None},
    "input passed on": lambda n, x: (x, n.a(x)),
    "dropout": lambda n, x: n.b(F.dropout(n.a(x), 0.5, n.training)),
    "unused result": lambda n, x: (n.c(x), n.b(x))[1],
}


def calibrated(net: nn.Module, x: Tensor, qconfig: QConfig | str = "portable") -> nn.Module:
    prepared = prepare(net, qconfig, example_args=(x,))
    calibrate(prepared, [x])
    return prepared


@pytest.mark.parametrize("name", BODIES)
def test_int8_equals_fake_quantized(name: str):
    x = torch.randn(4, 4, 6, 6)
    prepared = calibrated(Net(BODIES[name]), x)
    int8 = convert(prepared)
    assert any(isinstance(m, Int8Layer) for m in int8.modules())
    with torch.no_grad(), quiet_torchscript():
        fake, real = prepared(x), int8(x)
        leaves = torch.utils._pytree.tree_leaves
        assert torch.utils._pytree.tree_structure(real) == torch.utils._pytree.tree_structure(fake)
        step = max(q[0] for q in state_of(prepared).qparams())
        for a, b in zip(leaves(fake), leaves(real), strict=True):
            if isinstance(a, Tensor):
                # One flipped tie in a few thousand values may travel to the output; a wrong grid moves them all.
                assert (a - b).norm() <= max(1e-2 * a.norm(), step)
        if name != "dict":  # TorchScript has no None and no list inside a dict
            traced = torch.jit.freeze(torch.jit.trace(int8, x))
            for a, b in zip(leaves(real), leaves(traced(x)), strict=True):
                assert torch.equal(a, b)


def test_most_of_a_residual_block_runs_in_int8():
    x = torch.randn(4, 4, 6, 6)
    int8 = convert(calibrated(Net(lambda n, x: n.c(F.relu(n.a(x) + n.b(F.relu(n.a(x)))))), x))
    targets = [str(node.target) for node in int8.graph.nodes]
    assert sum("quantize_per_tensor" in t for t in targets) == 1  # the input
    assert targets.count("dequantize") == 1  # the output


def test_convert_leaves_the_prepared_model_alone():
    x = torch.randn(4, 4, 6, 6)
    prepared = calibrated(Net(BODIES["add relu"]), x).train()
    before, parts = copy.deepcopy(prepared.state_dict()), list(prepared.named_modules())
    with torch.inference_mode():
        convert(prepared)
    after = prepared.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if isinstance(before[k], Tensor))
    assert prepared.training
    assert list(prepared.named_modules()) == parts
    prepared(x).sum().backward()


def test_without_ranges_there_is_nothing_to_convert():
    with pytest.raises(ValueError, match=r"No fake quantizer has seen a batch.*lq\.set_phase\(.*lq\.calibrate\(.*EMA"):
        convert(prepare(nn.Sequential(nn.Linear(2, 2))))
    with pytest.raises(ValueError, match="is not prepared for QAT"):
        convert(nn.Sequential(nn.Linear(2, 2)))  # type: ignore[arg-type]


def _by_buffers(average: nn.Module, running: nn.Module) -> None:
    averaged = AveragedModel(average, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    averaged.n_averaged += 1  # the first update copies
    averaged.update_parameters(running)
    average.load_state_dict(averaged.module.state_dict())


def _by_entries(average: nn.Module, running: nn.Module) -> None:
    with torch.no_grad():
        for ours, theirs in zip(average.state_dict().values(), running.state_dict().values(), strict=True):
            ours.copy_(ours.lerp(theirs, 0.5) if ours.is_floating_point() else theirs)


@pytest.mark.parametrize("update", [_by_buffers, _by_entries])
def test_an_average_of_prepared_modules_converts(update: Callable[[nn.Module, nn.Module], None]):
    x = torch.randn(16, 4)
    running = prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    set_phase(running, fake_quant=True, observer=True, freeze_bn=False)
    running.train()(x)
    average, weight = copy.deepcopy(running), running[0].weight.detach().clone()
    with torch.no_grad():
        running[0].weight *= 3
    running(3 * x)
    update(average, running)
    torch.testing.assert_close(average[0].weight, 2 * weight)
    assert average(x).isfinite().all()
    assert sqnr(average.eval()(x), convert(average)(x)) > 40  # a flipped rounding of some values


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.aux = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.body(x))
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


def test_auxiliary_heads_do_not_reach_the_int8_model():
    x = torch.randn(32, 4)
    prepared = prepare(Auxiliary(), example_args=(x,))
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    prepared.train()(x)
    int8 = convert(prepared)
    assert sum(isinstance(m, Int8Layer) for m in int8.modules()) == 2
    assert isinstance(int8(x), Tensor)


class Skippable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.b(F.relu(self.a(x)))))


def test_a_layer_without_ranges_stays_float_on_its_trained_grid():
    x = torch.randn(32, 4)
    prepared = calibrated(Skippable(), x)
    state = state_of(prepared)
    for slot in (1, 2):
        state.min_val[slot], state.max_val[slot] = torch.inf, -torch.inf
    int8 = convert(prepared)
    assert not any(isinstance(m, Int8Layer) for m in int8.modules())
    torch.testing.assert_close(int8(x), prepared(x), rtol=1e-5, atol=1e-5)  # order of multiplications in the fold


def test_a_bfloat16_model_converts():
    x = torch.randn(4, 4, 6, 6)
    prepared = calibrated(Net(BODIES["add"]), x).to(torch.bfloat16)
    assert convert(prepared)(x).dtype == torch.float32


# ---- trained models ---------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, channels: int, act: type[nn.Module], groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.bn1, self.act = nn.BatchNorm2d(channels), act()
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))) + x)


def make_classifier(act: type[nn.Module], groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), act(),
        Residual(16, act, groups), Residual(16, act, groups),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def structured(count: int) -> tuple[Tensor, Tensor]:
    """Stripes in one of four directions, with noise."""
    labels = torch.arange(count) % 4
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    waves = torch.stack([rows, columns, rows + columns, rows - columns])[labels]
    phase = torch.rand(count, 1, 1) * 6
    return (torch.sin(waves * 1.1 + phase) + 0.4 * torch.randn(count, 12, 12))[:, None], labels


def train(prepared: nn.Module, steps: int, lr: float, **phase: bool) -> None:
    set_phase(prepared, **phase)
    optimizer = torch.optim.SGD(prepared.parameters(), lr, momentum=0.9)
    for _ in range(steps):
        x, y = structured(64)
        optimizer.zero_grad()
        F.cross_entropy(prepared.train()(x), y).backward()
        optimizer.step()


SUPPORTED = [p for p in PRESETS if PRESETS[p].engine in torch.backends.quantized.supported_engines]


@pytest.mark.parametrize("preset", SUPPORTED)
@pytest.mark.parametrize(("act", "groups"), [(nn.ReLU, 1), (nn.ReLU6, 16), (nn.Hardswish, 1)])
def test_what_was_trained_is_what_is_deployed(preset: str, act: type[nn.Module], groups: int):
    prepared = prepare(make_classifier(act, groups), preset, example_args=(structured(2)[0],))
    train(prepared, 30, 0.1, fake_quant=False, observer=False, freeze_bn=False)
    train(prepared, 30, 0.02, fake_quant=True, observer=True, freeze_bn=False)
    train(prepared, 10, 0.005, fake_quant=True, observer=False, freeze_bn=True)
    x, y = structured(512)
    with torch.no_grad():
        fake, real = prepared.eval()(x), convert(prepared)(x)
    assert (fake.argmax(1) == y).float().mean() > 0.9
    assert (fake.argmax(1) == real.argmax(1)).float().mean() >= 0.995
    # Left are ties that round to either side; qnnpack makes many more of them (bias and scale rounded once more).
    assert sqnr(fake, real) >= (32 if preset == "qnnpack" else 40)


class OneWeightTwoStrides(nn.Module):
    """Two convolutions of one weight, and two calls of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.conv(x)
        y = F.conv2d(x, self.conv.weight, self.conv.bias, stride=2)
        return self.head(self.head(wide.mean((2, 3)) + y.mean((2, 3))))


def test_calls_of_one_weight_are_one_kernel_only_if_they_are_the_same():
    x = torch.randn(4, 1, 8, 8)
    prepared = prepare(OneWeightTwoStrides(), example_args=(x,))
    calibrate(prepared, [x], show_progress=False)
    int8 = convert(prepared)
    assert torch.allclose(int8(x), prepared.eval()(x), atol=0.02)  # a step of its output
    assert torch.allclose(reference(prepared)(x), prepared(x), atol=0.02)


class Flags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, twice: bool = False, scale: float = 1.0) -> Tensor:
        x = self.a(x) * scale if mask is None else self.a(x) * mask
        return self.b(self.a(x) if twice else x)


def test_arguments_that_are_fixed_in_it_are_refused_as_others():
    x = torch.randn(6, 4)
    prepared = prepare(Flags(), example_args=(x,))
    calibrate(prepared, [x])
    int8 = copy.deepcopy(convert(prepared))
    assert torch.equal(int8(x, None, twice=False, scale=1), int8(x))
    others: list[dict[str, Any]] = [{"mask": torch.ones(4)}, {"mask": [1]}, {"twice": True}, {"scale": 2.0}]
    for other in others:
        with pytest.raises(ValueError, match=rf"converted with {next(iter(other))}=.*, which is fixed in it, but was"):
            int8(x, **other)


class ToSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, size: Any = (4, 4), settings: dict[str, Any] | None = None) -> Tensor:
        y = F.interpolate(self.conv(x), size)
        return y * 2 if settings is not None and settings["double"] else y


def test_lists_and_dicts_without_tensors_are_fixed_as_well() -> None:
    x, given = torch.randn(2, 3, 8, 8), {"size": (5, 5), "settings": {"double": True, "of": [1, 2]}}
    prepared = prepare(ToSize(), example_args=(x,), example_kwargs=given)
    calibrate(prepared, [{"x": x, **given}], show_progress=False)
    expected = prepared.eval()(x, **given)
    for int8 in (convert(prepared), copy.deepcopy(convert(prepared))):
        same = {"size": [5, 5], "settings": {"of": (1, 2), "double": True}}
        assert sqnr(expected, int8(x, **given)) > 40
        assert torch.equal(int8(x, **same), int8(x, **given))
        others: list[dict[str, Any]] = [
            {"size": (6, 6)},
            {"size": 5},
            {"settings": None},
            {"settings": {"double": False, "of": [1, 2]}},
        ]
        for other in others:
            (name,) = other
            with pytest.raises(ValueError, match=rf"converted with {name}=.*, which is fixed in it, but was called"):
                int8(x, **{**given, **other})


class Mode(enum.Enum):
    ADDS = "adds"
    DOUBLES = "doubles"


class Chosen(nn.Module):
    """Takes what no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(
        self, x: Tensor, mode: Mode = Mode.ADDS, part: slice | None = None, fill: float = math.nan, log: Any = print
    ) -> Tensor:
        y = self.fc(x)[:, part or slice(None)]
        return (y + 1 if mode is Mode.ADDS else y * 2).nan_to_num(fill)


def test_objects_and_nan_are_fixed_as_well() -> None:
    x, given = torch.randn(6, 4), {"mode": Mode.DOUBLES, "part": slice(0, 2), "log": object()}
    prepared = prepare(Chosen(), example_args=(x,), example_kwargs=given)
    calibrate(prepared, [{"x": x, **given}], show_progress=False)
    expected = prepared.eval()(x, **given)
    for int8 in (convert(prepared), copy.deepcopy(convert(prepared))):
        same = {"mode": Mode("doubles"), "part": slice(0, 2), "fill": float("nan"), "log": object()}
        for call in (given, same, {}):
            assert sqnr(expected, int8(x, **call)) > 40
        others: list[dict[str, Any]] = [{"mode": Mode.ADDS}, {"part": slice(1, 3)}, {"fill": 0.0}, {"log": len}]
        for other in others:
            with pytest.raises(ValueError, match=rf"converted with {next(iter(other))}=.*, which is fixed in it, but"):
                int8(x, **{**given, **other})


class Resizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return F.interpolate(self.conv(batch["image"]), size=batch["image"].shape[2:]) * batch["scale"]


def test_sizes_that_the_graph_may_hold_as_constants_are_refused_unless_they_are_dynamic() -> None:
    call = {"image": torch.rand(2, 3, 8, 12), "scale": torch.ones(2, 1, 1, 1)}
    larger = {"image": torch.rand(1, 3, 10, 20), "scale": torch.ones(1, 1, 1, 1)}
    prepared = prepare(Resizes(), example_args=(call,))
    calibrate(prepared, [{"batch": call}], show_progress=False)
    int8 = convert(prepared)
    assert int8({name: tensor[:1] for name, tensor in call.items()}).shape == (1, 4, 8, 12)
    for copied in (int8, copy.deepcopy(int8)):
        with pytest.raises(
            ValueError, match=r"batch_0 of the shape \(any, 3, 8, 12\), but was called with \(1, 3, 10, 20\)"
        ):
            copied(larger)
    with pytest.raises(ValueError, match=r"dynamic_axes={'batch_0': \[2, 3\]} leaves it open"):
        int8(larger)
    dynamic = convert(prepared, dynamic_axes={"batch_0": [2, 3]})
    torch.testing.assert_close(dynamic(larger), prepared.eval()(larger), atol=0.05, rtol=0)
