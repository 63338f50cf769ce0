"""What to say beside the table of what an artifact holds: layers in float, weights left out, fixed batches, labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import fx, nn

from lq.core.state import STATE
from lq.export.exporters import EXPORTERS
from lq.messages import some_of
from lq.tracing.attention import ATTENTION
from lq.tracing.axes import asked_axes, named_tensors
from lq.tracing.losses import inputs_of_losses
from lq.tracing.plan import Plan
from lq.tracing.structure import Inputs

_WORTH_TELLING = 0.05  # of all weights


def batch_notes(size: int | None, infos: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which files take inputs of one size alone, although the model takes any.

    Args:
        size: of the batch that they were exported with; ``None`` if its tensors have no batch in common, as the nodes
            and edges of a graph, whose sizes are independent.
        infos: exporter -> what it has returned. Of one with a ``largest_batch``, larger batches are run in parts.

    Returns:
        a line for each of them.

    Example:
        >>> batch_notes(8, {"onnx": {"dynamic_batch": False}, "pt2": {"dynamic_batch": True}})
        ['onnx: the file takes batches of exactly 8, as torch.export could not leave the size of the batch open']
    """
    fixed = [k for k, info in infos.items() if info.get("dynamic_batch") is False and not info.get("largest_batch")]
    limit = f"batches of exactly {size}, as torch.export could not leave the size of the batch open"
    if size is None:
        limit = "inputs of exactly the sizes of the example, as torch.export could not leave all open: pad the data"
    return [f"{kind}: the file takes {limit}" for kind in fixed]


def size_notes(prepared: fx.GraphModule, example: Inputs, kinds: Iterable[str]) -> list[str]:
    """Which files hold the sizes of the example although dynamic axes were asked for.

    Args:
        prepared: the graph that was exported.
        example: inputs of one call.
        kinds: names of exporters.

    Returns:
        a line for each of them.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import prepare
        >>> from lq.conversion.graph import as_graph
        >>> x = torch.rand(2, 1, 8, 8)
        >>> prepared = prepare(nn.Sequential(nn.Conv2d(1, 2, 3)), example_args=(x,))
        >>> graph = as_graph(prepared, ((x,), {}), axes={"input": {2: "height", 3: "width"}})
        >>> size_notes(graph, ((x,), {}), ["torch", "litert"])
        ['litert: the file holds the sizes of the example, input (1, 8, 8) behind the batch']
    """
    tensors = named_tensors(prepared, example)
    shapes = ", ".join(f"{name} {tuple(tensors[name].shape[1:])}" for name in asked_axes(prepared))
    static = [kind for kind in kinds if EXPORTERS[kind].static] if shapes else []
    return [f"{kind}: the file holds the sizes of the example, {shapes} behind the batch" for kind in static]


def float_notes(plan: Plan, infos: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which planned int8 layers the files of each exporter hold in float, and what that leaves of the work in int8.

    Layers that the plan itself leaves in float are not told again.

    Args:
        plan: of the prepared model.
        infos: exporter -> what it has returned; ``float_layers`` holds names, with a kind in parentheses where a
            runtime has said so, and ``float_reasons`` the reason for some of them.

    Returns:
        a line for each exporter that leaves a layer in float.

    Example:
        >>> from lq.tracing.plan import LayerPlan
        >>> rows = LayerPlan("a", "Conv2d", weight="int7", work=30), LayerPlan("up", "Linear", weight="int7", work=10)
        >>> found = {"torch": {"float_layers": ["up"], "float_reasons": {"up": "the engine has no kernel"}}}
        >>> float_notes(Plan("Net", "portable", rows, ()), found)
        ['torch: up runs in float (the engine has no kernel); 75% of the work runs in int8, not 100%']
    """
    notes = []
    for kind, info in infos.items():
        layers, work = _unplanned(plan, info.get("float_layers", ()))
        if layers:
            reasons = info.get("float_reasons", {})
            shown = some_of(_with_reason(layer, reasons) for layer in layers)
            verb = "runs" if len(layers) == 1 else "run"
            notes.append(f"{kind}: {shown} {verb} in float{_reason(layers, reasons)}{_share(plan, work)}")
    return notes


def unused_notes(prepared: nn.Module, float_model: nn.Module | None) -> list[str]:
    """How many weights the output does not depend on, such as those of an encoder that is cut short.

    Args:
        prepared: the graph that is exported.
        float_model: whose size the table shows; ``None`` if it shows none.

    Returns:
        a line if they are a part of the size that one should know of.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> unused_notes(net[:1], net)
        ["the output does not depend on 50% of the weights: FP32's size counts them, the files leave them out"]
    """
    total = 0 if float_model is None else sum(weight.numel() for weight in float_model.parameters())
    used = sum(weight.numel() for name, weight in prepared.named_parameters() if not name.startswith(f"{STATE}."))
    if used >= (1 - _WORTH_TELLING) * total:
        return []
    share = f"{1 - used / total:.0%}"
    return [f"the output does not depend on {share} of the weights: FP32's size counts them, the files leave them out"]


def loss_notes(prepared: nn.Module) -> list[str]:
    """That the files take labels or the like, which an application does not have.

    Args:
        prepared: the graph that is exported; nothing is known of another module.

    Returns:
        a line if it computes a loss.

    Example:
        >>> loss_notes(nn.Linear(4, 4))
        []
    """
    names = inputs_of_losses(prepared.graph) if isinstance(prepared, fx.GraphModule) else []
    if not names:
        return []
    listed = " and ".join(names)
    return [
        f"the files take {listed}, too, from which the model computes its loss. For files without, call the model "
        f"without {listed} in validation_step, and compute the loss from its outputs"
    ]


def _unplanned(plan: Plan, layers: Sequence[str]) -> tuple[list[str], int]:
    """Those of the names that the plan does not have in float, and their work."""
    int8 = {row.name: row.work for row in plan.quantized} | {row.name: row.work for row in plan.int8_products}
    planned = {row.name for row in plan.layers} | {row.name for row in plan.products}
    known = [layer for layer in layers if layer.partition(" (")[0] in int8]
    # A runtime may have names of its own; more of those than the plan has in float are some of the others.
    strange = [layer for layer in layers if layer.partition(" (")[0] not in planned]
    named = sum(layer.partition(" (")[0] in planned - int8.keys() for layer in layers)
    halves = sum(row.kind == ATTENTION for row in plan.products if row.reason)  # an attention is two products
    expected = len(planned - int8.keys()) + halves - named
    work = sum(int8[layer.partition(" (")[0]] for layer in known)
    return known + (strange if len(strange) > expected else []), work


def _with_reason(layer: str, reasons: Mapping[str, str]) -> str:
    different = len(set(reasons.values())) > 1
    return f"{layer} ({reasons[layer]})" if different and layer in reasons else layer


def _reason(layers: Sequence[str], reasons: Mapping[str, str]) -> str:
    found = {reasons.get(layer) for layer in layers} - {None}
    return f" ({found.pop()})" if len(found) == 1 and len(set(reasons.values())) == 1 else ""


def _share(plan: Plan, work: int) -> str:
    if plan.share is None or not work:
        return ""
    share, planned = f"{plan.share - work / plan.work:.0%}", f"{plan.share:.0%}"
    return f"; {share} of the work runs in int8, not {planned}" if share != planned else ""
