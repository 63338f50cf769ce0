"""What the zoo knows of a published model: how to build it, what to call it with, and what is asked of it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lq.tracing.structure import Inputs

Kind = Literal["conv", "transformer", "detector", "recurrent", "other"]

# Share of the multiply-accumulates that has to run in int8, attention's two products aside.
SHARES: Mapping[str, float] = {"conv": 0.95, "transformer": 0.9}


def default_loss(output: Any) -> Tensor:
    """A scalar on which every floating tensor of an output has a say, and every value of it another one."""
    parts = [leaf.float().flatten() for leaf in floating(output) if leaf.requires_grad]
    assert parts, "no part of the output has a gradient"
    weights = [torch.arange(part.numel(), device=part.device).cos() for part in parts]
    return torch.stack([(p.square() + p * w).mean() for p, w in zip(parts, weights, strict=True)]).sum()


def sum_of_losses(output: Mapping[str, Tensor]) -> Tensor:
    """The loss of a torchvision detector in training."""
    return torch.stack(list(output.values())).sum()


@dataclass(frozen=True)
class Entry:
    """A published model, as small as its package allows.

    Args:
        name: unique in the catalogue; starts with the package's short name.
        package: what has to be installed, by the name that is imported.
        build: makes it, with random weights and without any download.
        inputs: arguments and keywords of one call in evaluation.
        train_inputs: those of one call in training, where they are others.
        loss: a scalar of what it returns in training.
        kind: of network.
        min_int8_share: share of the work that has to run in int8; ``None`` is what its kind has to reach.
        notes: what is special about it.
    """

    name: str
    package: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    train_inputs: Callable[[], Inputs] | None = None
    loss: Callable[[Any], Tensor] = default_loss
    kind: Kind = "conv"
    min_int8_share: float | None = None
    notes: str = ""

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    @property
    def least_share(self) -> float:
        """The share of the work that has to run in int8."""
        return SHARES.get(self.kind, 0.0) if self.min_int8_share is None else self.min_int8_share

    def make(self, seed: int = 0) -> nn.Module:
        """The model; the same seed gives the same weights and the same running statistics."""
        with seeded(seed), quiet():
            return with_statistics(enliven(self.build()), self)

    def example(self, seed: int = 1) -> Inputs:
        """The inputs of one call in evaluation; the same seed gives the same ones."""
        with seeded(seed):
            return self.inputs()

    def training_example(self, seed: int = 2) -> Inputs:
        """The inputs of one call in training."""
        with seeded(seed):
            return (self.train_inputs or self.inputs)()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of torch, NumPy and Python from a seed inside; outside all goes on as before."""
    import numpy as np

    theirs, pythons = np.random.get_state(), random.getstate()  # transformers draws from it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(theirs)
            random.setstate(pythons)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings of the packages themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def enliven(module: nn.Module) -> nn.Module:
    """Give parameters that are constant and next to zero other values, so that what lies behind them shows.

    Many networks start with layer scales of 1e-6, or with residual branches, heads and position tables of zero.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not parameter.numel() or not parameter.is_floating_point():
                continue
            low, high = parameter.min(), parameter.max()
            if low != high or abs(float(low)) > 1e-2:
                continue
            if "bias" in name or parameter.numel() != max(parameter.shape, default=1):
                parameter.normal_(std=0.02)
            else:
                parameter.uniform_(0.2, 0.5)
    return module


def with_statistics(module: nn.Module, entry: Entry) -> nn.Module:
    """Let BatchNorms take the mean of the statistics of four batches, whatever the momentum of the architecture."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    was_training = module.training
    if norms:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = None  # torch's word for the mean over all batches
            norm.reset_running_stats()
        with torch.no_grad():
            for _ in range(4):
                args, kwargs = (entry.train_inputs or entry.inputs)()
                module.train()(*args, **kwargs)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return module.train(was_training)


def floating(output: Any) -> list[Tensor]:
    """All floating tensors of an output, in its order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if dataclasses.is_dataclass(output) and not isinstance(output, (type, Mapping)):
        output = [getattr(output, field.name) for field in dataclasses.fields(output)]
    if isinstance(output, Mapping):
        output = list(output.values())
    return [leaf for part in output for leaf in floating(part)] if isinstance(output, (list, tuple)) else []


def images(count: int = 4, size: int | tuple[int, int] = 32, channels: int = 3) -> Tensor:
    """Smooth random images with noise, each with its own contrast and brightness: white noise all looks the same."""
    height, width = (size, size) if isinstance(size, int) else size
    smooth = nn.functional.interpolate(torch.randn(count, channels, 8, 8), size=(height, width), mode="bilinear")
    noisy = smooth + 0.3 * torch.randn(count, channels, height, width)
    return noisy * (0.5 + torch.rand(count, 1, 1, 1)) + torch.randn(count, channels, 1, 1) / 2


def tokens(count: int = 2, length: int = 7, vocabulary: int = 64) -> Tensor:
    """Random token ids; the first two, often of special meaning, do not occur."""
    return torch.randint(2, vocabulary, (count, length))


def of_images(size: int | tuple[int, int] = 32, count: int = 4) -> Callable[[], Inputs]:
    """One positional batch of images."""
    return lambda: ((images(count, size),), {})
