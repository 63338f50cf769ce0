"""The tensors of a prepared model that are quantized, by names that people know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from lq.backends.prepare import is_planned, plan_of, set_phase, state_of
from lq.core.fake_quantize import FakeQuantize
from lq.core.functional import fake_quantize
from lq.core.modes import modes_kept
from lq.core.state import QATState
from lq.export.parity.bisection import before_detections
from lq.metrics import main_tensor
from lq.metrics.outputs import describe
from lq.tracing import ops
from lq.tracing.batch import images_at_once
from lq.tracing.images import run_in_parts
from lq.tracing.structure import tensors_of as all_tensors


class QuantizedTensor(NamedTuple):
    """A fake quantizer, named by the layer or operation whose output it rounds.

    Example:
        >>> from lq.ptq.static import prepare_static
        >>> tensor = tensors_of(prepare_static(nn.Sequential(nn.Linear(4, 2)), [torch.eye(4)]))[0]
        >>> tensor.name, tensor.round(torch.tensor([0.301, 9.0]))
        ('input_1', tensor([0.3020, 1.0000]))
    """

    name: str
    quantizer: FakeQuantize
    node: Any = None

    @property
    def grid(self) -> tuple[float, float, float]:
        """Scale, and the lowest and highest multiple of it."""
        state: QATState = self.quantizer.__dict__["state"]
        low, high = (float(end) for end in state.qparams()[self.quantizer.slot][1:])
        return float(self.quantizer.scale), low, high

    def round(self, x: Tensor) -> Tensor:
        """``x`` on the grid."""
        return fake_quantize(x, *self.grid)


def tensors_of(prepared: nn.Module) -> list[QuantizedTensor]:
    """The quantized activations, in the order in which they are computed.

    A layer that is called several times has a tensor for each call; their names tell the calls apart.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> [tensor.name for tensor in tensors_of(prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU())))]
        ['input_1', '0']
    """
    state = state_of(prepared)
    rows = plan_of(prepared).tensors if is_planned(prepared) else ()
    if not isinstance(prepared, fx.GraphModule):
        return [QuantizedTensor(row.after, cast(FakeQuantize, state.get_submodule(row.name))) for row in rows]
    modules, behind = dict(prepared.named_modules()), {row.name: row.after for row in rows}
    found: dict[str, QuantizedTensor] = {}
    for node in prepared.graph.nodes:
        quantizer = ops.module_of(node, modules)
        if isinstance(quantizer, FakeQuantize):
            source = cast(fx.Node, node.args[0])
            name = str(source.target) if source.op == "call_module" else source.name
            name = behind.get(state.names[quantizer.slot], name)
            name = f"{name} ({source.name})" if name in found else name
            found[name] = QuantizedTensor(name, quantizer, source)
    return list(found.values())


def has_ranges(prepared: nn.Module) -> bool:
    """Whether a fake quantizer of a prepared model has seen a batch.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> has_ranges(prepare(nn.Sequential(nn.Linear(4, 2))))
        False
    """
    state = state_of(prepared)
    state.settle()
    return any(state.observed())


def require_ranges(prepared: nn.Module, who: str) -> None:
    """Refuse a model whose quantizers have no ranges.

    Raises:
        ValueError: if it is not prepared, or not one of its quantizers has a range.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> require_ranges(prepare(nn.Sequential(nn.Linear(4, 2))), "sensitivity()")
        Traceback (most recent call last):
        ValueError: sensitivity() needs ranges, and no fake quantizer has one: call lq.calibrate(prepared, batches) ...
    """
    if not has_ranges(prepared):
        raise ValueError(
            f"{who} needs ranges, and no fake quantizer has one: call lq.calibrate(prepared, batches) first, "
            "or load a QAT checkpoint."
        )


def finite_output(output: Any, who: str) -> Tensor:
    """The tensor of an output that is compared, refused if there is nothing to compare in it.

    Raises:
        ValueError: if it holds NaN or infinity.

    Example:
        >>> finite_output(torch.tensor([[1.0, float("nan")]]), "sensitivity()")
        Traceback (most recent call last):
        ValueError: sensitivity(): the output of the model, Tensor float32 (1, 2), holds NaN or infinity. ...
    """
    tensor = main_tensor(output)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(
            f"{who}: the output of the model, {describe(output)}, holds NaN or infinity. Look for it in the data "
            "(torch.isfinite(x).all()) or in the weights; nothing can be compared with it."
        )
    return tensor


def compared_part(model: nn.Module) -> nn.Module:
    """What of a model is run to compare its output: of a graph that chooses boxes, all that is before the choice.

    How many boxes are chosen differs from version to version, so that no two of them can be subtracted.

    Example:
        >>> from torchvision.ops import nms
        >>> from lq.conversion.graph import as_graph
        >>> from lq.ptq.static import prepare_static
        >>> class Detector(nn.Module):
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.head = nn.Linear(4, 5)
        ...     def forward(self, x: Tensor) -> Tensor:
        ...         found = self.head(x)
        ...         return found[nms(found[:, :4], found[:, 4], 0.5)]
        >>> x = torch.eye(4)
        >>> graph = as_graph(prepare_static(Detector(), [x]))
        >>> graph(x).shape, compared_part(graph)(x).shape
        (torch.Size([4, 5]), torch.Size([20]))
    """
    heads = before_detections(model) if isinstance(model, fx.GraphModule) else None
    return model if heads is None else _Joined(heads)


class _Joined(nn.Module):
    """A part of a detector that returns the tensors of its output, for all images of a list, as one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        count = images_at_once(self.model)
        if count is None:
            return torch.cat(self._joined(*args, **kwargs))
        return torch.cat(run_in_parts(self._joined, (args, kwargs), count))

    def _joined(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return [torch.cat([tensor.flatten() for tensor in all_tensors(self.model(*args, **kwargs))])]


@contextmanager
def evaluating(prepared: nn.Module) -> Iterator[QATState]:
    """Within the block the model is in evaluation, fake-quantized, observers off, without gradients; then as before.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2)))
        >>> with evaluating(prepared) as state:
        ...     print(state.fake_quant, prepared.training, torch.is_grad_enabled())
        True False False
        >>> state.fake_quant, prepared.training, torch.is_grad_enabled()
        (False, True, True)
    """
    state = state_of(prepared)
    flags = {"fake_quant": state.fake_quant, "observer": state.observer, "freeze_bn": state.freeze_bn}
    try:
        with modes_kept(prepared), torch.no_grad():
            prepared.eval()
            set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
            yield state
    finally:
        set_phase(prepared, **flags)
