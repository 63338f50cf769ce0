"""Files that take fewer samples at once than the model does, so that a larger batch is run in parts."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from lq.backends.prepare import state_of
from lq.export.artifact.calls import smallest_call
from lq.tracing.batch import fixed_batch
from lq.tracing.chance import depends_on_chance
from lq.tracing.samples import batch_size
from lq.tracing.structure import Inputs, map_tensors, tensors_of

_TOLERANCE = 1e-3  # of the largest value: kernels add in another order for another batch size
_FEW = 0.01  # of values that are no floats, which may lie next to a tie


def call_of_one_part(prepared: fx.GraphModule, example: Inputs) -> Inputs:
    """The smallest call of a model, for a file that runs larger batches in parts of its size.

    Args:
        prepared: in evaluation mode, with ranges.
        example: inputs of one call, on the CPU.

    Raises:
        ValueError: if the model computes something else of a batch than of its parts.

    Example:
        >>> from torch import nn
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.rand(8, 4)
        >>> example = (x,), {}
        >>> call_of_one_part(prepare_static(nn.Sequential(nn.Linear(4, 2)), [x]), example)[0][0].shape
        torch.Size([1, 4])
        >>> call_of_one_part(prepare_static(nn.Sequential(nn.Linear(4, 2), nn.Softmax(0)), [x]), example)
        Traceback (most recent call last):
        ValueError: the outputs of a sample depend on other samples of the batch, from 1 (Softmax) on, but the file ...
    """
    part = smallest_call(prepared, example)
    size = batch_size(part)
    if size is None or fixed_batch(prepared) is not None:
        return part
    found = _dependence(prepared, _two_parts(example, size), size, batch_size(example) == size)
    if found is None:
        return part
    samples = "sample" if size == 1 else "samples"
    raise ValueError(
        f"the outputs of a sample depend on other samples of the batch{found}, but the file takes {size} {samples} at "
        "a time, so that larger batches would be computed wrong. Let forward compute each sample by itself, or choose "
        "an exporter whose files take whole batches, such as onnx"
    )


def _dependence(prepared: fx.GraphModule, whole: Inputs, size: int, alone: bool) -> str | None:
    """Where the samples of a batch become dependent, as ", from ... on" or ""; ``None`` if they do not."""
    calls = [whole, *(_part(whole, start, size) for start in (0, size))]
    with _in_float(prepared), torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            whole_one, *parts = (tensors_of(prepared(*args, **kwargs)) for args, kwargs in copy.deepcopy(calls))
            rows = list(zip(whole_one, *parts, strict=True))
            if not any(_depends(one, both, alone) for one, *both in rows) or depends_on_chance(prepared, whole):
                return None
        except Exception:
            logging.getLogger(__name__).debug("not compared with its parts", exc_info=True)
            return None
        return _first(prepared, calls)


def _first(prepared: fx.GraphModule, calls: Sequence[Inputs]) -> str:
    try:
        whole, *parts = (_values(prepared, call) for call in calls)
    except Exception:  # it explains an error, and must not become one
        logging.getLogger(__name__).debug("not run node by node", exc_info=True)
        return ""
    dependent = (node for node, value in whole.items() if _depends(value, [part[node] for part in parts]))
    return next((f", from {_name(node)} on" for node in dependent), "")


def _name(node: fx.Node) -> str:
    """What a person calls a node: as the plan does where it is all that a module computes."""
    path, kind = next(reversed((node.meta.get("nn_module_stack") or {}).values()), ("", ""))
    is_module = path and node.name.lstrip("_") == path.replace(".", "_").lstrip("_")
    return f"{path} ({kind.rpartition('.')[2]})" if is_module else node.name


def _values(prepared: fx.GraphModule, call: Inputs) -> dict[fx.Node, Tensor]:
    """All tensors that a graph computes, by its nodes."""
    args, kwargs = copy.deepcopy(call)
    bound = inspect.signature(prepared.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    recorder = _Recorder(prepared)
    recorder.run(*bound.args)
    return recorder.found


class _Recorder(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.found: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n] = value
        return value


def _depends(whole: Tensor, parts: Sequence[Tensor], alone: bool = False) -> bool:
    """Whether a tensor of a batch is not that of its parts.

    Args:
        whole: of the batch.
        parts: of each part.
        alone: whether the model is called with such parts alone, whose tensors may have no batch.
    """
    if whole.dim() != parts[0].dim():
        return True
    dims = [dim for dim, (a, b) in enumerate(zip(whole.shape, parts[0].shape, strict=True)) if a != b]
    if len(dims) > 1:
        return True
    if not dims:
        return not alone and any(_differ(whole, part) for part in parts)
    return _differ(whole, torch.cat(list(parts), dims[0]))


def _differ(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return True
    if not a.numel():
        return False
    if not a.is_floating_point():
        return float((a != b).float().mean()) > _FEW
    a, b = (torch.nan_to_num(t.double(), 0.0, 0.0, 0.0) for t in (a, b))
    return float((a - b).abs().max()) > _TOLERANCE * max(1e-6, float(a.abs().max()))


@contextmanager
def _in_float(prepared: fx.GraphModule) -> Iterator[None]:
    """Without rounding, which would make steps of differences in the last digit."""
    state = state_of(prepared)
    before, state.fake_quant = state.fake_quant, False
    try:
        yield
    finally:
        state.fake_quant = before


def _two_parts(example: Inputs, size: int) -> Inputs:
    """The first samples of a call, as many as two parts have; where it has no others, changed ones."""

    def doubled(t: Tensor) -> Tensor:
        if not t.dim():
            return t
        first, second = t[:size], t[size : 2 * size]
        others = second.shape == first.shape and not torch.equal(first, second)
        return torch.cat([first, second if others else _changed(first)])

    args, kwargs = map_tensors(example, doubled)
    return args, kwargs


def _changed(t: Tensor) -> Tensor:
    turned = t.flip(tuple(range(1, t.dim())))
    return 0.3 * turned + 0.5 if t.is_floating_point() else turned


def _part(call: Inputs, start: int, size: int) -> Inputs:
    args, kwargs = map_tensors(call, lambda t: t[start : start + size] if t.dim() else t)
    return args, kwargs
