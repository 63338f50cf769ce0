"""Networks of plain torch as people write them: each holds one thing that instrumenting a module may break."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

from tests.zoo.entry import Entry, Inputs, Kind, images, of_images, tokens


def convs(width: int = 16, classes: int = 10) -> nn.Sequential:
    """Two convolutions with BatchNorm, and a head."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * width, classes),
    )


class Attention(nn.Module):
    """nn.MultiheadAttention on its own input, or on another one."""

    def __init__(self, *, cross: bool = False, batch_first: bool = True, kdim: int | None = None) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=batch_first, kdim=kdim, vdim=kdim)
        self.norm, self.head, self.cross = nn.LayerNorm(32), nn.Linear(32, 10), cross

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        other = context if self.cross else x
        attended, _ = self.attention(x, other, other, need_weights=False)
        y: Tensor = self.head(self.norm(x + attended))
        return y


class Encoder(nn.Module):
    """Tokens through nn.TransformerEncoder."""

    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.head(self.encoder(self.embedding(ids)).mean(1))
        return y


class Recurrent(nn.Module):
    """An LSTM, a GRU or a plain RNN between an embedding and a head."""

    def __init__(self, kind: str, **kwargs: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 16)
        self.recurrent = getattr(nn, kind)(16, 24, batch_first=True, **kwargs)
        self.head = nn.Linear(48 if kwargs.get("bidirectional") else 24, 10)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.head(self.recurrent(self.embedding(ids))[0][:, -1])
        return y


class Cells(nn.Module):
    """A GRUCell in a Python loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(8, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.new_zeros(len(x), 16)
        for step in x.unbind(1):
            hidden = self.cell(step, hidden)
        y: Tensor = self.head(hidden)
        return y


class StandardizedConv2d(nn.Conv2d):
    """Weight standardization: Qiao et al., arXiv:1903.10520."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        weight = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)
        return F.conv2d(x, weight.view_as(self.weight), self.bias, self.stride, self.padding)


class Conv2dSame(nn.Conv2d):
    """Pads as TensorFlow does, by the size of the input."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(reversed(x.shape[-2:]), self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride)


def _first_conv(kind: type[nn.Conv2d], stride: int = 2) -> nn.Module:
    net = convs()
    net[0] = kind(3, 16, 3, stride=stride, padding=0 if kind is Conv2dSame else 1, bias=False)
    return net


def _normed(how: Callable[[nn.Module], nn.Module]) -> nn.Module:
    net = convs()
    net[3], net[7] = how(net[3]), how(net[7])
    return net


class Symmetric(nn.Module):
    """A weight that equals its transpose."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


def _symmetric() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))
    parametrize.register_parametrization(net[2], "weight", Symmetric())
    return net


def _pruned() -> nn.Module:
    net = convs()
    prune.l1_unstructured(net[3], "weight", amount=0.3)
    prune.ln_structured(net[7], "weight", amount=0.25, n=2, dim=0)
    return net


class Dropping(nn.Module):
    """LayerDrop: in training each layer is left out with probability one half."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 32)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(4))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            if not self.training or torch.rand(()) > 0.5:
                x = x + layer(x)
        y: Tensor = self.head(x)
        return y


class Checkpointed(nn.Module):
    """Its middle is computed again in the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.middle = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(16, 16, 3))
        self.head, self.reentrant = nn.Linear(16, 10), reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = checkpoint(self.middle, x, use_reentrant=self.reentrant) if self.training else self.middle(x)
        y: Tensor = self.head(x.mean((2, 3)))
        return y


class Tied(nn.Module):
    """The head has the embedding's weight; another weight is used twice, the second time transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(64, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 64, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.head(torch.tanh(F.linear(torch.relu(self.body(self.embedding(ids))), self.body.weight.t())))
        return y


class Twice(nn.Module):
    """One layer under two names, and called twice under each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second, self.act, self.head = self.first, nn.ReLU(), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        x = self.act(self.first(x))
        x = x + self.act(self.second(x))
        y: Tensor = self.head(self.act(self.first(x)).mean((2, 3)))
        return y


class Functional(nn.Module):
    """No layers at all: parameters and functions, and a bias that is put together in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(16, 3, 3, 3) * 0.2)
        self.qkv = nn.Parameter(torch.randn(48, 16) * 0.2)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(16)), nn.Parameter(torch.zeros(16))
        self.matrix = nn.Parameter(torch.randn(16, 10) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.kernel, stride=4)).flatten(2).mT
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = F.linear(x, self.qkv, bias).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v).mean(1) @ self.matrix


class Wide(NamedTuple):
    """Two outputs."""

    logits: Tensor
    features: Tensor


@dataclass
class Named:
    """Two outputs, of which one comes in training only."""

    logits: Tensor
    auxiliary: Tensor | None = None


class ManyWays(nn.Module):
    """A dict of inputs, an optional one, and an output of any kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.image, self.vector, self.norm = nn.Conv2d(3, 16, 3, stride=2), nn.Linear(8, 16), nn.BatchNorm2d(16)
        self.head, self.kind, self.calls = nn.Linear(16, 10), kind, 0

    def forward(self, batch: dict[str, Tensor], *, scale: float = 1.0) -> Any:
        self.calls += 1
        y = torch.relu(self.norm(self.image(batch["image"]))).mean((2, 3))
        if "vector" in batch:
            y = y + torch.relu(self.vector(batch["vector"]))
        logits = self.head(y) * scale
        if self.kind == "dict":
            return {"logits": logits, "features": y}
        if self.kind == "namedtuple":
            return Wide(logits, y)
        return Named(logits, y if self.training else None)


def _batch_of_dict() -> Inputs:
    return ({"image": images(2, 16), "vector": torch.randn(2, 8)},), {"scale": 0.5}


class Upsampling(nn.Module):
    """An autoencoder with a transposed convolution, pooling indices and an interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.pool = nn.Conv2d(3, 16, 3, padding=1), nn.MaxPool2d(2, return_indices=True)
        self.unpool, self.up = nn.MaxUnpool2d(2), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.norm, self.out = nn.BatchNorm2d(8), nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.down(x))
        y, indices = self.pool(skip)
        y = torch.relu(self.norm(self.up(self.unpool(y, indices))))
        y: Tensor = self.out(torch.cat([y, F.interpolate(skip, size=y.shape[-2:], mode="bilinear")], dim=1))
        return y


class Checked(nn.Module):
    """Looks at shapes and values, writes into slices and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convs()
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"images of three channels, not {tuple(x.shape)}")
        x = x.clone()
        x[:, 0] *= 0.5
        x[:, 1].add_(x[:, 2])
        self.seen = x.detach()
        y: Tensor = self.net(x)
        return y


def _entry(
    name: str,
    build: Callable[[], nn.Module],
    inputs: Callable[[], Inputs] | None = None,
    kind: Kind = "conv",
    min_int8_share: float | None = None,
) -> Entry:
    return Entry(f"torch {name}", "torch", build, inputs or of_images(), kind=kind, min_int8_share=min_int8_share)


def _vectors(*shape: int) -> Callable[[], Inputs]:
    return lambda: ((torch.randn(*shape),), {})


def _ids() -> Inputs:
    return (tokens(),), {}


def entries() -> Iterable[Entry]:
    """Attention, recurrence, weights that are computed, layers that are shared, and Python in forward."""
    yield from _attention()
    yield from _recurrence()
    yield from _weights()
    yield from _sharing()
    yield from _shapes()


def _attention() -> Iterable[Entry]:
    yield _entry("MultiheadAttention", Attention, _vectors(2, 7, 32), "transformer")
    last = functools.partial(Attention, batch_first=False)
    yield _entry("MultiheadAttention (batch second)", last, _vectors(7, 2, 32), "transformer")
    pair: Callable[[], Inputs] = lambda: ((torch.randn(2, 7, 32), torch.randn(2, 5, 24)), {})  # noqa: E731
    cross = functools.partial(Attention, cross=True, kdim=24)
    yield _entry("MultiheadAttention (cross)", cross, pair, "transformer")
    for first in (False, True):
        name = "TransformerEncoder" + (" (norm first)" if first else "")
        yield _entry(name, functools.partial(Encoder, norm_first=first), _ids, "transformer")
    both: Callable[[], Inputs] = lambda: ((torch.randn(2, 7, 32), torch.randn(2, 5, 32)), {})  # noqa: E731
    whole = functools.partial(nn.Transformer, 32, 4, 1, 1, 64, batch_first=True)
    yield _entry("Transformer", whole, both, "transformer")


def _recurrence() -> Iterable[Entry]:
    for kind in ("LSTM", "GRU", "RNN"):
        yield _entry(kind, functools.partial(Recurrent, kind), _ids, "recurrent")
    both = functools.partial(Recurrent, "LSTM", bidirectional=True, num_layers=2, dropout=0.1)
    yield _entry("LSTM (bidirectional)", both, _ids, "recurrent")
    yield _entry("GRUCell in a loop", Cells, _vectors(2, 5, 8), "recurrent")


def _weights() -> Iterable[Entry]:
    yield _entry("weight_norm (hook)", functools.partial(_normed, nn.utils.weight_norm))
    yield _entry("weight_norm (parametrization)", functools.partial(_normed, parametrizations.weight_norm))
    yield _entry("spectral_norm (hook)", functools.partial(_normed, nn.utils.spectral_norm))
    yield _entry("spectral_norm (parametrization)", functools.partial(_normed, parametrizations.spectral_norm))
    yield _entry("parametrize", _symmetric, _vectors(4, 12))
    yield _entry("prune", _pruned)
    yield _entry("weight standardization", functools.partial(_first_conv, StandardizedConv2d))
    yield _entry("Conv2dSame", functools.partial(_first_conv, Conv2dSame))
    yield _entry("parameters and functions", Functional, kind="transformer")


def _sharing() -> Iterable[Entry]:
    yield _entry("LayerDrop", Dropping, _vectors(4, 12))
    for reentrant in (False, True):
        name = "reentrant checkpoint" if reentrant else "checkpoint"
        yield _entry(name, functools.partial(Checkpointed, reentrant=reentrant))
    yield _entry("tied weights", Tied, _ids, "transformer")
    yield _entry("a layer registered twice", Twice)


def _shapes() -> Iterable[Entry]:
    for kind in ("dict", "namedtuple", "dataclass"):
        yield _entry(f"dict to {kind}", functools.partial(ManyWays, kind), _batch_of_dict)
    yield _entry("autoencoder", Upsampling, min_int8_share=0.5)
    yield _entry("checks and slices", Checked)
    yield _entry("Conv1d", _conv1d, _vectors(2, 4, 32))
    yield _entry("Conv3d", _conv3d, _vectors(2, 3, 8, 16, 16))


def _conv1d() -> nn.Module:
    net = nn.Sequential(
        nn.Conv1d(4, 16, 5, padding=4, dilation=2),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Conv1d(16, 16, 3, groups=4),
        nn.GELU(),
        nn.Flatten(),
        nn.LazyLinear(10),
    )
    net(torch.randn(2, 4, 32))  # lazy layers have no weights before the first call
    return net


def _conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.ReLU6(), nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(64, 10)
    )
