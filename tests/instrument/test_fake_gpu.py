"""What a training step does on a GPU, proven without one: no value is asked for, nothing comes from another device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lq.backends.prepare import plan_of, prepare, set_phase, state_of
from lq.config.qconfig import QConfig
from lq.config.specs import OBSERVERS, ActivationSpec, WeightSpec
from lq.core.float32 import Constant, Float32Buffers
from tests.instrument.nets import Net

GPU = "cuda:0"

PHASES = {
    "observing": {"fake_quant": False, "observer": True, "freeze_bn": False},
    "observers on": {"fake_quant": True, "observer": True, "freeze_bn": False},
    "observers off": {"fake_quant": True, "observer": False, "freeze_bn": False},
    "BN frozen": {"fake_quant": True, "observer": False, "freeze_bn": True},
}
LEARNED = {"activation": ActivationSpec(learned_scale=True), "weight": WeightSpec(-63, 63, learned_scale=True)}
QCONFIGS = {
    "tensorrt": QConfig("tensorrt"),
    **{observer: QConfig(activation=ActivationSpec(observer=observer)) for observer in OBSERVERS},
    "learned": QConfig(**LEARNED),
    "per tensor": QConfig(weight=WeightSpec(per_channel=False)),
    "mse of weights": QConfig(weight=WeightSpec(observer="mse")),
}


class Transformer(nn.Module):
    """A small ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 8, 4, 4)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.layer(self.patches(x).flatten(2).transpose(1, 2))
        return self.head(tokens.mean(1))


class Detector(nn.Module):
    """A feature pyramid with a head that all levels share."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(2, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.lateral = nn.ModuleList([nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)])
        self.boxes = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = F.relu6(self.norms[0](self.down[0](x)))
        coarse = F.relu6(self.norms[1](self.down[1](fine)))
        top = self.lateral[1](coarse)
        levels = self.lateral[0](fine) + F.interpolate(top, scale_factor=2.0, mode="nearest"), top
        return {f"level{i}": self.boxes(level) for i, level in enumerate(levels)}


class Skipping(nn.Module):
    """Its second layer does not run after ``prepare``, so that one slot never has a range."""

    skips = False

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return x if self.skips else torch.relu(self.second(x))


class Watch(TorchDispatchMode):
    """Sees every operation, and objects to whatever does not stay on the GPU or is computed in float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, out)):
            if isinstance(tensor, Tensor):
                assert tensor.device == torch.device(GPU), f"{func} takes or gives a tensor on {tensor.device}"
                assert tensor.dtype != torch.float64, f"{func} computes in float64"
        return out


def images() -> Tensor:
    return torch.randn(2, 2, 8, 8)


def made(net: nn.Module, qconfig: QConfig, with_ranges: bool = True) -> nn.Module:
    prepared = prepare(net.train(), qconfig, example_args=(images(),))
    if isinstance(net, Skipping):
        net.skips = True
    if with_ranges:
        set_phase(prepared, **PHASES["observers on"])
        prepared(images())
    return prepared


def to_gpu(module: nn.Module, mode: FakeTensorMode, dtype: torch.dtype = torch.float32) -> None:
    """As ``module.to("cuda:0", dtype)`` would leave it; ranges stay float32."""
    for part in module.modules():
        kept = isinstance(part, Float32Buffers)
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    own = tensor.dtype if kept or not tensor.is_floating_point() else dtype
                    with mode:
                        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=own, device=GPU)
                        tensors[name] = nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake
        for name, value in vars(part).items():
            if isinstance(value, Constant):
                numbers = value.on("cpu")
                with mode:
                    setattr(part, name, Constant(torch.empty(numbers.shape, dtype=numbers.dtype, device=GPU)))


@contextmanager
def autocast_to(dtype: torch.dtype | None) -> Iterator[None]:
    """As torch.autocast("cuda", dtype), which refuses where there is no GPU."""
    torch.set_autocast_enabled("cuda", dtype is not None)
    torch.set_autocast_dtype("cuda", dtype or torch.float16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


def run(prepared: nn.Module, mode: FakeTensorMode, x: Tensor, autocast: torch.dtype | None = None) -> None:
    """A call in training and in evaluation for every phase; the very first copies its inputs to the CPU."""
    with mode, autocast_to(autocast):
        prepared(x)
        for phase in PHASES.values():
            set_phase(prepared, **phase)
            for training in (True, False):
                with Watch():
                    prepared.train(training)(x)


NETS = {"cnn": Net, "transformer": Transformer, "detector": Detector, "skipping": Skipping}


# FakeTensorMode warns of what only matters to torch.compile: the address of a range tells whether it is another one.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")


@pytest.mark.parametrize(
    ("net", "qconfig"),
    [
        *(("cnn", qconfig) for qconfig in QCONFIGS),
        *((net, qconfig) for net in NETS if net != "cnn" for qconfig in ("learned", "mse")),
    ],
)
def test_a_step_neither_waits_nor_mixes_devices(net, qconfig):
    prepared, mode = made(NETS[net](), QCONFIGS[qconfig]), FakeTensorMode()
    assert len(plan_of(prepared).quantized) >= 2
    to_gpu(prepared, mode)
    with mode:
        x = torch.empty(2, 2, 8, 8, device=GPU)
    run(prepared, mode, x)


@pytest.mark.parametrize("net", NETS)
def test_nor_does_the_first_one_without_ranges(net):
    prepared, mode = made(NETS[net](), QConfig(), with_ranges=False), FakeTensorMode()
    to_gpu(prepared, mode)
    with mode:
        x = torch.empty(2, 2, 8, 8, device=GPU)
    run(prepared, mode, x)


@pytest.mark.parametrize("kind", ["half", "bfloat16", "bf16-mixed", "16-mixed", "channels_last"])
@pytest.mark.parametrize(("net", "qconfig"), [("cnn", "moving_average_minmax"), ("transformer", "learned")])
def test_nor_in_less_precision_or_another_layout(net, qconfig, kind):
    prepared, mode = made(NETS[net](), QCONFIGS[qconfig]), FakeTensorMode()
    dtype = {"half": torch.float16, "bfloat16": torch.bfloat16}.get(kind, torch.float32)
    layout = torch.channels_last if kind == "channels_last" else torch.contiguous_format
    to_gpu(prepared.to(memory_format=layout), mode, dtype)
    with mode:
        x = torch.empty(2, 2, 8, 8, device=GPU, dtype=dtype).to(memory_format=layout)
    run(prepared, mode, x, {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(kind))


def test_whatever_waits_is_noticed():
    prepared, mode = made(Net(), QConfig()), FakeTensorMode()
    prepared.register_forward_hook(lambda *_: state_of(prepared).ready(0))
    to_gpu(prepared, mode)
    with mode:
        x = torch.empty(2, 2, 8, 8, device=GPU)
    with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
        run(prepared, mode, x)
