"""The kernels compute what PyTorch's operations compute, sums apart to the bit, and run only where they may."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import lq
from lq.config.specs import ActivationSpec, WeightSpec
from lq.core import native
from lq.core.folding import fold_batch_norm
from lq.core.functional import fake_quantize
from lq.core.lsq import learned_fake_quantize
from lq.core.native import weights
from lq.core.packed import pack
from lq.core.saving import Saving
from lq.core.scratch import Scratch
from lq.core.state import QATState
from lq.core.weight import Covering, fake_quantize_weight, weight_scale
from lq.core.weight_quantizer import WeightQuantizer

needs_compiler = pytest.mark.skipif(native.library().functions is None, reason=native.library().reason)
CHANNELS_LAST = torch.channels_last

SHAPES = [(1,), (7,), (8,), (17,), (4095,), (4097,), (3, 70_001), (2, 5, 9, 11)]
GRIDS = [(0.05, 0.0, 255.0), (0.05, -100.0, 155.0), (0.5, -8.0, 7.0), (1e-3, 0.0, 6000.0), (0.3, 0.0, 15.0)]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def values(shape: tuple[int, ...], scale: float, **odd: float) -> Tensor:
    """Most on the grid's inside, some far outside, some exactly between two of its values."""
    x = torch.randn(shape) * 20 * scale
    flat = x.view(-1)
    flat[::5] *= 100
    flat[1::7] = (torch.randint(-20, 20, flat[1::7].shape) + 0.5) * scale
    flat[2::11] = -0.0
    for place, value in enumerate(odd.values()):
        flat[(place * 3) % len(flat)] = value
    return x


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.stride() == b.stride() and torch.equal(a.nan_to_num(123.0), b.nan_to_num(123.0))


def both(compute: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """With the kernels and without."""
    fast = compute()
    with native.off():
        return fast, compute()


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("scale", "low", "high"), GRIDS)
def test_values_gradients_and_packed_bytes_are_equal(
    shape: tuple[int, ...], scale: float, low: float, high: float, threads: int
) -> None:
    start, grad = values(shape, scale), torch.randn(shape)

    def compute(inplace: bool, saves: bool) -> tuple[Tensor, ...]:
        x = start.clone().requires_grad_()
        if not saves:
            out = fake_quantize(x * 1.0, scale, low, high, inplace)
            return out.detach().clone(), *torch.autograd.grad(out, x, grad)
        with Saving() as saving:
            out = fake_quantize(x * 1.0, scale, low, high, inplace, saving)
            product = out * out.detach()  # saves one of them, from the bytes
        return out.detach().clone(), *torch.autograd.grad(product, x, grad)

    assert native.usable(start)
    for inplace in (False, True):
        for saves in (False, True) if high - low < 256 else (False,):
            fast, slow = both(lambda inplace=inplace, saves=saves: compute(inplace, saves))
            assert all(map(same, fast, slow)), (inplace, saves)
    with torch.no_grad():
        assert all(map(same, *both(lambda: (fake_quantize(start, scale, low, high),))))


@needs_compiler
@pytest.mark.parametrize("odd", [{"nan": torch.nan}, {"plus": torch.inf}, {"minus": -torch.inf}, {}])
@pytest.mark.parametrize("shape", SHAPES)
def test_ends_are_those_of_aminmax(shape: tuple[int, ...], odd: dict[str, float], threads: int) -> None:
    x, ends = values(shape, 0.1, **odd), torch.zeros(2)
    out = fake_quantize(x, 0.1, 0.0, 255.0, ends=ends)
    with native.off():
        assert same(out, fake_quantize(x, 0.1, 0.0, 255.0))
    assert same(ends, torch.stack(torch.aminmax(x)))
    native.round_and_pack(x, 10.0, 0.0, 255.0, 0.1, 0.0, 255.0, ends=ends.zero_())
    assert same(ends, torch.stack(torch.aminmax(x)))


@needs_compiler
@pytest.mark.parametrize("count", [*range(1, 20), 4096, 4100, 100_003])
def test_bytes_are_packed_and_unpacked_as_by_torch(count: int, threads: int) -> None:
    x = values((count,), 0.1)
    out, packed = native.round_and_pack(x, 10.0, -100.0, 155.0, 0.1, -100.0, 155.0)
    by_torch = pack((x * 10.0).round().clamp(-101, 156), -101.0)
    assert torch.equal(packed.bytes, by_torch.bytes)
    assert torch.equal(packed.bits, by_torch.bits)
    assert same(native.unpack(packed, -100.0, -100.0, 155.0, 0.1), out)


WEIGHTS = {
    "convolution": lambda: torch.randn(16, 8, 3, 3),
    "channels last": lambda: torch.randn(16, 8, 3, 3).to(memory_format=CHANNELS_LAST),
    "depthwise": lambda: torch.randn(96, 1, 3, 3) * torch.logspace(-6, 2, 96).view(-1, 1, 1, 1),
    "large": lambda: torch.randn(130, 300),
    "one channel": lambda: torch.randn(1, 5),
    "a dead channel": lambda: torch.randn(6, 4) * torch.tensor([1.0, 0.0, 1e-9, 1.0, 2.0, 0.5]).view(-1, 1),
    "zeros": lambda: torch.zeros(4, 3),
    "small units": lambda: torch.randn(4, 9) * 1e-12,
    "not a number": lambda: torch.tensor([[1.0, 2.0], [torch.nan, 1.0]]),
    "infinite": lambda: torch.tensor([[1.0, 2.0], [torch.inf, 1.0]]),
    "a vector": lambda: torch.randn(7),
    "transposed": lambda: torch.randn(8, 16).T,
}


@needs_compiler
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_rounded_equally(kind: str, per_channel: bool, axis: int, threads: int) -> None:
    torch.manual_seed(0)
    weight, spec = WEIGHTS[kind](), WeightSpec(-7, 7, per_channel=per_channel)
    axis = min(axis, weight.dim() - 1)
    channels = [1] * weight.dim()
    channels[axis] = weight.shape[axis]
    chosen, grad = torch.randn(channels), torch.randn(weight.shape)

    def compute(with_factor: bool, scratch: Scratch | None, at_once: bool) -> tuple[Tensor, ...]:
        leaf, factor = weight.clone().requires_grad_(), chosen.clone().requires_grad_() if with_factor else None
        scale = weight_scale(leaf, spec, axis)
        out = fake_quantize_weight(leaf, Covering(spec, axis) if at_once else scale, factor, scratch)
        wanted = [leaf] if factor is None else [leaf, factor]
        return scale, out.detach().clone(), *torch.autograd.grad(out, wanted, grad.clone())

    for with_factor in (False, True) if weight.dim() > 1 else (False,):
        for scratch, at_once in itertools.product((None, Scratch()), (False, True)):
            fast, slow = both(lambda f=with_factor, s=scratch, a=at_once: compute(f, s, a))
            assert all(map(same, fast[:3], slow[:3])), (with_factor, scratch, at_once)
            sums = (grad * fast[1]).abs().sum_to_size(channels) / chosen.abs()  # added in another order
            assert not with_factor or ((fast[3] - slow[3]).abs() <= 1e-6 * sums)[sums.isfinite()].all()


@needs_compiler
def test_a_weight_is_read_once_for_scale_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    call = weights.call
    monkeypatch.setattr(weights, "call", lambda name, *given: (called.append(name), call(name, *given))[1])
    quantizer, norm = WeightQuantizer(WeightSpec()), nn.BatchNorm2d(8)
    weight = nn.Parameter(torch.randn(8, 4, 3, 3))
    factor, _ = fold_batch_norm(norm, None)
    F.conv2d(torch.randn(2, 4, 5, 5), quantizer.quantized(weight, True, factor, fold=True)).sum().backward()
    assert called == ["lq_fold_batch_norm", "lq_round_weight", "lq_factor_gradients"]
    assert norm.weight.grad is not None


@needs_compiler
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("quant_max", [1, 7, 127])
def test_the_search_for_a_scale_finds_as_good_a_one(kind: str, per_channel: bool, quant_max: int, threads: int) -> None:
    torch.manual_seed(0)
    weight = WEIGHTS[kind]()
    per_channel = per_channel and weight.dim() > 1
    spec = WeightSpec(-quant_max, quant_max, per_channel=per_channel, observer="mse")
    (fast,), (slow,) = both(lambda: (weight_scale(weight, spec),))
    assert fast.shape == slow.shape
    rows = weight.flatten(1) if per_channel else weight.reshape(1, -1)
    errors = [
        (rows - (rows / scale).round().clamp(-quant_max, quant_max) * scale).double().square().sum(1)
        for scale in (fast.reshape(-1, 1), slow.reshape(-1, 1))
    ]
    # Sums in float32, of squares whose size is that of the weight: a candidate may win that is as good.
    difference = (errors[0] - errors[1]).abs()[errors[1].isfinite()]
    assert (difference <= 1e-5 * rows.double().square().sum(1)[errors[1].isfinite()]).all()
    assert torch.isfinite(fast).equal(torch.isfinite(slow))


@needs_compiler
@pytest.mark.parametrize("shape", [(1,), (17,), (3, 70_001), (6, 5, 3, 3), (130, 700)])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0.0, 15.0), (-7.0, 7.0), (-100.0, 155.0), (0.0, 0.0)])
def test_learned_scales_and_their_gradients_are_equal(
    shape: tuple[int, ...], per_row: bool, low: float, high: float, threads: int
) -> None:
    x, grad = values(shape, 0.1), torch.randn(shape)
    rows = [shape[0], *[1] * (len(shape) - 1)] if per_row else []
    steps = torch.rand(rows) * 0.1 + 0.05

    def compute() -> tuple[Tensor, ...]:
        leaf, scale = x.clone().requires_grad_(), steps.clone().requires_grad_()
        out = learned_fake_quantize(leaf, scale, low, high)
        return out.detach(), *torch.autograd.grad(out, (leaf, scale), grad)

    fast, slow = both(compute)
    assert all(map(same, fast[:2], slow[:2]))
    size = (grad.abs() * max(-low, high, 1.0)).sum_to_size(steps.shape)
    assert ((fast[2] - slow[2]).abs() <= 1e-6 * size).all()  # float32 adds them in another order
    assert same(fast[2], compute()[2])


def test_what_is_no_plain_float_in_memory_is_left_to_torch() -> None:
    x = torch.randn(4, 6)
    with torch.device("meta"):
        assert not native.usable(torch.empty(2))
        assert not native.can_unpack(pack(torch.empty(2), 0.0))
    assert not native.usable(x.half())
    assert not native.usable(x[:, :3])
    assert not native.usable(x.to_sparse())
    assert not native.usable(torch.view_as_complex(torch.randn(4, 2)).conj().imag)  # negated when it is read
    assert not native.usable(torch._efficientzerotensor(4))
    assert not native.usable(torch._to_functional_tensor(x))
    with FakeTensorMode() as mode:
        assert not native.usable(mode.from_tensor(x))
        assert not native.usable(x)
    with FlopCounterMode(display=False):
        assert not native.usable(x)
    assert not torch.vmap(lambda row: torch.tensor(native.usable(row)).expand_as(row))(x).any()
    traced = torch.jit.trace(lambda x: fake_quantize(x, 0.5, 0.0, 3.0), x)
    assert torch.equal(traced(x + 1), fake_quantize(x + 1, 0.5, 0.0, 3.0))


@needs_compiler
@pytest.mark.parametrize("per_channel", [True, False])
def test_where_they_may_run_torch_rounds_nothing(per_channel: bool) -> None:
    x, weight = torch.randn(64), torch.randn(4, 3)

    def names() -> set[str]:
        with torch.autograd.profiler.profile() as profile:
            fake_quantize(x, 0.1, 0.0, 255.0)
            fake_quantize_weight(weight, weight_scale(weight, WeightSpec(per_channel=per_channel)))
        return {event.name for event in profile.function_events}

    fast, slow = both(lambda: (names(),))
    rounding = {"aten::round_", "aten::amax"}
    assert rounding <= slow[0]
    assert not rounding & fast[0]


@needs_compiler
def test_autograd_notices_what_was_overwritten() -> None:
    x = torch.randn(8, requires_grad=True)
    squared = (x * 1.0).exp()  # keeps its result
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        fake_quantize(squared, 0.5, 0.0, 3.0, inplace=True).sum().backward()
    with torch.inference_mode():
        y = torch.full((3,), 0.7)
        assert fake_quantize(y, 0.5, 0.0, 3.0, inplace=True).data_ptr() == y.data_ptr()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.up, self.head = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.stem(x)))
        x = x + F.relu(self.norm2(self.deep(x)))
        return self.head(self.up(x).sigmoid().mean((2, 3)))


@needs_compiler
@pytest.mark.parametrize("save", ["floats", "bytes"])
@pytest.mark.parametrize("grid", ["portable", "4 bits"])
def test_a_network_is_trained_equally(grid: str, save: str) -> None:
    def train() -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        net, batches = Net().to(memory_format=CHANNELS_LAST), torch.randn(6, 4, 3, 9, 9)
        four = lq.QConfig(weight=lq.WeightSpec(-7, 7), activation=lq.ActivationSpec(0, 15))
        net = lq.prepare(net, "portable" if grid == "portable" else four, example_args=(batches[0],))
        net.qat_state.saves_bytes = save == "bytes"
        optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
        for step, x in enumerate(batches):
            lq.set_phase(net, fake_quant=step > 0, observer=step < 4, freeze_bn=step > 3)
            optimizer.zero_grad()
            F.cross_entropy(net(x), torch.tensor([1, 2, 3, 4])).backward()
            optimizer.step()
        tensors = {k: v for k, v in net.state_dict().items() if isinstance(v, Tensor)}
        return *tensors.values(), net.eval()(batches[0]).detach()

    fast, slow = both(train)
    assert all(map(same, fast, slow))


@contextmanager
def default(dtype: torch.dtype, device: str) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_default_decides_what_memory_they_write_into(dtype: torch.dtype, device: str) -> None:
    x, weight, grad = torch.randn(40, 70), torch.randn(5, 30), torch.randn(40, 70)
    steps, covering = torch.full((40, 1), 0.1), weight_scale(weight, WeightSpec())
    state = QATState(["x"], [ActivationSpec()], ["none"])
    searched = WeightSpec(-7, 7, observer="mse")

    def compute() -> tuple[Tensor, ...]:
        ends = state.ends_to_fill(0, x)
        assert ends is not None
        out, packed = native.round_and_pack(x, 10.0, 0.0, 255.0, 0.1, 0.0, 255.0, ends=ends)
        again = native.unpack(packed, 0.0, 0.0, 255.0, 0.1)
        gradients = native.learned_gradients(x, grad, steps, -8.0, 7.0, 0.5)
        scales = *(weight_scale(weight, s) for s in (WeightSpec(per_channel=False), searched)), covering
        return out, *packed[:2], again, ends, *gradients, *scales, weight_scale(weight, WeightSpec())

    expected = compute()
    with default(dtype, device):
        found = compute()
    assert [(t.dtype, t.device) for t in found] == [(t.dtype, t.device) for t in expected]
    assert all(map(torch.equal, found, expected))


@needs_compiler
def test_gradients_of_several_directions_at_once_are_left_to_torch() -> None:
    x, scale = torch.randn(6), torch.tensor(0.1)

    def compute() -> tuple[Tensor, ...]:
        leaves = x.clone().requires_grad_(), scale.clone().requires_grad_()
        return torch.autograd.grad(learned_fake_quantize(*leaves, -3, 3), leaves, torch.eye(6), is_grads_batched=True)

    assert all(map(same, *both(compute)))


@needs_compiler
def test_values_that_are_no_number_get_no_gradient() -> None:
    def compute() -> tuple[Tensor, ...]:
        x = torch.full((32,), torch.nan, requires_grad=True)  # PyTorch's vectors; what is left over lets it pass
        return torch.autograd.grad(learned_fake_quantize(x, torch.tensor(0.1), -3, 3), x, torch.ones(32))

    fast, slow = both(compute)
    assert same(fast[0], torch.zeros(32))
    assert same(*fast, *slow)


@needs_compiler
def test_a_trace_ahead_of_dispatch_holds_the_operations() -> None:
    traced = make_fx(lambda x: fake_quantize(x, 0.5, 0.0, 3.0), pre_dispatch=True)(torch.zeros(4))
    assert torch.equal(traced(torch.ones(4)), torch.ones(4))


def _found(monkeypatch: pytest.MonkeyPatch, **variables: str) -> native.Library:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return native.library.__wrapped__()


def test_without_a_compiler_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _found(monkeypatch, CC="no-such-compiler")
    assert found.functions is None
    assert "apt install gcc" in found.reason
    assert _found(monkeypatch, CC='gcc "-O1') == found


def test_a_failing_compiler_is_named_with_what_it_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_bytes(b"#!/bin/sh\nprintf 'no such architecture: \\344\\n' >&2; exit 1\n")
    compiler.chmod(0o755)
    found = _found(monkeypatch, CC=f"{compiler} -O1")
    assert (found.functions, found.reason) == (None, f"{compiler} -O1 failed: no such architecture: \ufffd")


@needs_compiler
@pytest.mark.parametrize("flag", ["-ffast-math", "-Ofast"])
def test_flags_of_the_compiler_do_not_change_what_is_computed(flag: str) -> None:
    program = """
import torch
from lq.core import native
ends = torch.zeros(2)
native.round_values(torch.tensor([0.0, torch.nan]), 1.0, 0.0, 1.0, 1.0, ends=ends)
print(ends.isnan().all().item(), (torch.tensor(1e-40) * 1.0).item() > 0)
"""
    environment = {**os.environ, "CC": f"{os.environ.get('CC', 'cc')} {flag}"}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert found.stdout.split() == ["True", "True"], found.stderr


def test_the_variable_switches_the_kernels_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _found(monkeypatch, LQ_NATIVE="0") == (None, "switched off by LQ_NATIVE=0")


@pytest.mark.parametrize(("name", "value"), [("platform.system", lambda: "Darwin"), ("sys.byteorder", "big")])
def test_other_machines_are_left_alone(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name, value)
    found = native.library.__wrapped__()
    assert found.functions is None
    assert found.reason.startswith("used on Linux alone")


@needs_compiler
def test_nothing_is_left_in_the_temporary_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert native.library.__wrapped__().functions is not None
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_a_reason_and_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    found = native.library.__wrapped__()
    assert found.functions is None
    assert "failed: " in found.reason


@needs_compiler
@pytest.mark.parametrize("channels", [1, 7, 300])
@pytest.mark.parametrize("has_weight", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_batch_norm_is_folded_equally(channels: int, has_weight: bool, has_bias: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(channels, eps=1e-3, affine=has_weight)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.0, 3.0)
    bias = torch.randn(channels, requires_grad=True) if has_bias else None
    leaves = [leaf for leaf in (bias, *norm.parameters()) if leaf is not None]
    if has_weight:
        nn.init.normal_(norm.weight)
        norm.weight.data[0] = 0.0
    of_factor, of_moved = torch.randn(2, channels)

    def compute() -> tuple[Tensor, ...]:
        factor, moved = fold_batch_norm(norm, bias)
        wanted = torch.autograd.grad((factor * of_factor + moved * of_moved).sum(), leaves) if leaves else ()
        return factor.detach(), moved.detach(), *wanted

    fast, slow = both(compute)
    assert all(map(same, fast, slow))


@needs_compiler
def test_statistics_may_be_written_to_before_the_backward_pass() -> None:
    norm = nn.BatchNorm1d(3)
    factor, moved = fold_batch_norm(norm, None)
    norm.running_mean.fill_(5.0)  # type: ignore[union-attr]
    (factor + moved).sum().backward()
    assert torch.equal(norm.weight.grad, torch.rsqrt(torch.ones(3) + 1e-5))  # type: ignore[arg-type]
