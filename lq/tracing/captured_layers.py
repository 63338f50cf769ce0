"""The quantized layers of a captured graph, made of the ATen calls that a weight mark leads to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from lq.compat.torch_private import BatchNorm, OpOverload
from lq.config.specs import WeightSpec
from lq.core.layer import QATLayer
from lq.core.lsq import LearnedScale
from lq.core.modules import QAT_LAYERS
from lq.core.state import QATState
from lq.tracing.aten import arguments


@dataclass(frozen=True)
class LayerSite:
    """What capture has to know of a layer.

    Args:
        name: dotted name in the plan, e.g. "features.0.0" or "blocks.0.attn.linear".
        spec: grid of the weight.
        folds: whether the ``batch_norm`` behind it belongs to it.
        learned_scale: of the weight, shared.

    Example:
        >>> from lq.backends.prepare import plan_of, prepare
        >>> (at,) = plan_of(prepare(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))).sites.layers
        >>> site = LayerSite(at.name, at.spec, folds=at.norm is not None)
        >>> site.name, site.folds
        ('0', True)
    """

    name: str
    spec: WeightSpec
    folds: bool = False
    learned_scale: LearnedScale | None = None


@dataclass(frozen=True)
class CapturedLayer:
    """A call of a layer in an ATen graph, as :func:`layer_call` reads it.

    Args:
        kind: the module that does the same.
        x: its input.
        weight: its weight.
        bias: its bias.
        options: the other arguments, by name.
        transposed: whether the weight has its input channels in front, as in ``x @ weight``.

    Example:
        >>> graph = fx.Graph()
        >>> x, weight = map(graph.placeholder, ("x", "weight"))
        >>> layer_call(graph.call_function(torch.ops.aten.mm.default, (x, weight)))
        CapturedLayer(kind=<class '...Linear'>, x=x, weight=weight, bias=None, options={}, transposed=True)
    """

    kind: type[nn.Module]
    x: Any
    weight: Any
    bias: Any
    options: Mapping[str, Any]
    transposed: bool = False


_KINDS: dict[str, type[nn.Module]] = {
    "linear": nn.Linear,
    **{f"conv{d}d": getattr(nn, f"Conv{d}d") for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": getattr(nn, f"ConvTranspose{d}d") for d in (1, 2, 3)},
}


def layer_call(node: fx.Node) -> CapturedLayer | None:
    """The call of a layer that a node makes, if it makes one.

    Example:
        >>> from torch.nn import functional as F
        >>> program = torch.export.export(nn.Conv1d(2, 4, 3, stride=2), (torch.zeros(1, 2, 9),), strict=False)
        >>> node = next(n for n in program.graph.nodes if n.op == "call_function")
        >>> call = layer_call(node)
        >>> call.kind.__name__, call.options
        ('Conv1d', {'stride': [2], 'padding': [0], 'dilation': [1], 'groups': 1})
    """
    if node.op != "call_function" or not isinstance(node.target, OpOverload) or node.target.namespace != "aten":
        return None
    name = node.target._schema.name.partition("::")[2]
    a = arguments(node.target, node.args, node.kwargs)
    if name == "addmm" and a["beta"] == 1 and a["alpha"] == 1:
        return CapturedLayer(nn.Linear, a["mat1"], a["mat2"], a["self"], {}, transposed=True)
    if name in ("matmul", "mm"):
        return CapturedLayer(
            nn.Linear, a["self"], a["other" if name == "matmul" else "mat2"], None, {}, transposed=True
        )
    if name not in _KINDS:
        return None
    rest = {k: v for k, v in a.items() if k not in ("input", "weight", "bias")}
    return CapturedLayer(_KINDS[name], a["input"], a["weight"], a["bias"], rest)


def make_layer(call: CapturedLayer, weight: Tensor, bias: Tensor | None, site: LayerSite, state: QATState) -> QATLayer:
    """The QAT layer of a call.

    Args:
        call: of the layer.
        weight: as the call takes it; a Parameter is shared.
        bias: likewise.
        site: name and grid.
        state: of the model.

    Example:
        >>> call = CapturedLayer(nn.Linear, "x", "weight", None, {}, transposed=True)
        >>> weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))  # of x @ weight
        >>> layer = make_layer(call, weight, None, LayerSite("matmul", WeightSpec()), QATState([], [], []))
        >>> layer.in_features, layer.out_features, layer.weight[0]
        (3, 2, tensor([1., 3., 5.]))
    """
    if call.transposed:
        weight = nn.Parameter(weight.detach().t(), requires_grad=False)
    layer = _bare(call, weight)
    layer.training = False
    layer._parameters["weight"] = _parameter(weight)
    layer._parameters["bias"] = None if bias is None else _parameter(bias)
    twin = QAT_LAYERS[call.kind].from_float(layer, site.spec, state)
    if twin.learned_scale is not None and site.learned_scale is not None:
        twin.quantizer.learned_scale = site.learned_scale
        twin.share_quantizer(twin.quantizer)
    return twin


def _bare(call: CapturedLayer, weight: Tensor) -> nn.Module:
    """A float layer of the weight's shape without memory for parameters."""
    if call.kind is nn.Linear:
        return nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    groups = call.options["groups"]
    outer, inner, kernel = weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:])
    if "output_padding" in call.options:
        outer, inner = inner, outer
    options = {
        key: tuple(value) * (len(kernel) // len(value)) if isinstance(value, (list, tuple)) else value
        for key, value in call.options.items()
    }
    kind: Any = call.kind
    layer: nn.Module = kind(inner, outer, kernel, device="meta", **options)
    return layer


def _parameter(tensor: Tensor) -> nn.Parameter:
    """The tensor itself, or its memory as a frozen parameter."""
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach(), requires_grad=False)


def make_batch_norm(named: Mapping[str, Any], dim: int) -> BatchNorm:
    """A BatchNorm module that shares its tensors.

    Args:
        named: ``weight``, ``bias``, ``running_mean``, ``running_var``, ``momentum`` and ``eps``.
        dim: dimensions of its input.

    Example:
        >>> mean = torch.zeros(3)
        >>> statistics = {"running_mean": mean, "running_var": torch.ones(3), "momentum": 0.1, "eps": 1e-5}
        >>> norm = make_batch_norm({"weight": None, "bias": None, **statistics}, dim=4)
        >>> type(norm).__name__, norm.running_mean is mean, norm.training
        ('BatchNorm2d', True, False)
    """
    kind = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(dim, nn.BatchNorm1d)
    mean = named["running_mean"]
    norm = kind(mean.shape[0], eps=named["eps"], momentum=named["momentum"], affine=False, device="meta")
    norm.affine = named["weight"] is not None
    for name in ("weight", "bias"):
        norm._parameters[name] = None if named[name] is None else _parameter(named[name])
    norm._buffers.update(
        running_mean=mean,
        running_var=named["running_var"],
        num_batches_tracked=torch.zeros((), dtype=torch.long, device=mean.device),
    )
    return norm.eval()
