"""How far rounding alone moves a fake-quantized model: the noise that no int8 kernel can stay below."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from lq.export.parity.gate import Gate, Parity, measure
from lq.metrics.detections import Comparable, comparable
from lq.tracing.choice import behind_choices, chooses_boxes
from lq.tracing.structure import Inputs, map_tensors

_LEAST_NOISE = 1e-5  # on scores


@torch.no_grad()
def rounding_noise(prepared: fx.GraphModule, calls: Sequence[Inputs], expected: Sequence[Comparable]) -> Parity | None:
    """Compare a fake-quantized model with itself in float64.

    A value next to a tie of the grid goes up in one arithmetic and down in another. In networks with many layers such
    flips multiply from layer to layer, until the outputs of two faultless implementations differ by as much as their
    grids allow.

    Args:
        prepared: in evaluation mode, with ranges.
        calls: inputs.
        expected: its main outputs for them, computed in float32.

    Returns:
        how far the float64 outputs are from those; ``None`` if the model does not run in float64.

    Example:
        >>> from lq.backends.prepare import prepare, set_phase
        >>> prepared = prepare(torch.nn.Sequential(torch.nn.Linear(4, 3)))
        >>> set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
        >>> x = torch.randn(8, 4)
        >>> _ = prepared(x)
        >>> noise = rounding_noise(prepared, [((x,), {})], [prepared.eval()(x)])
        >>> noise.agreement
        1.0
    """
    got = in_float64(prepared, calls)
    return None if got is None else measure(expected, list(map(comparable, got)), Gate())


@torch.no_grad()
def in_float64(prepared: fx.GraphModule, calls: Sequence[Inputs]) -> list[Any] | None:
    """What a fake-quantized model returns for some calls if it computes in float64; ``None`` if it cannot.

    Example:
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.rand(8, 4)
        >>> prepared = prepare_static(torch.nn.Sequential(torch.nn.Linear(4, 2)), [x])
        >>> [output.dtype for output in in_float64(prepared, [((x,), {})])], prepared(x).dtype
        ([torch.float64], torch.float32)
    """
    exact = copy.deepcopy(prepared).double()
    outputs = []
    try:
        for call in calls:
            args, kwargs = map_tensors(copy.deepcopy(call), _doubled)
            outputs.append(exact(*args, **kwargs))
    except Exception:  # the user's code may insist on float32 in any way
        return None
    return outputs


def with_noise(prepared: fx.GraphModule, sqnr_db: float) -> fx.GraphModule:
    """A copy of a detector with a little noise, the same in every call, on what its boxes are chosen by.

    That are the scores, and the feature maps that are read at the chosen boxes.

    Args:
        prepared: the detector.
        sqnr_db: power of each of these tensors over that of the noise. No two scores are equal, however high it is:
            those behind a layer with an int8 output lie on its grid, and runtimes sort equal ones in an order of their
            own.

    Returns:
        the copy.

    Example:
        >>> best_two = fx.symbolic_trace(lambda scores: torch.topk(scores, 2))
        >>> scores = torch.tensor([0.5, 0.5, 0.1])
        >>> noisy = with_noise(best_two, sqnr_db=40.0)(scores).values
        >>> noisy.allclose(best_two(scores).values, atol=0.05), bool(noisy[0] == noisy[1])  # no tie any longer
        (True, False)
    """
    twin, share = copy.deepcopy(prepared), 10 ** (-sqnr_db / 20)
    behind, noisy_maps = behind_choices(twin.graph), {}
    for node in list(twin.graph.nodes):
        position = 0 if node.target is torch.topk else 1 if chooses_boxes(node) else None
        if position is not None:
            with twin.graph.inserting_before(node):
                noisy = twin.graph.call_function(_noisy, (node.args[position], share))
            node.update_arg(position, noisy)
        for source in node.all_input_nodes if node in behind and not chooses_boxes(node) else ():
            if source in behind:
                continue
            if source not in noisy_maps:
                with twin.graph.inserting_after(source):
                    noisy_maps[source] = twin.graph.call_function(_noisy_map, (source, share))
            node.replace_input_with(source, noisy_maps[source])
    twin.recompile()
    return twin


def _noisy(x: Tensor, share: float) -> Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    power = x.square().mean() if x.numel() else x.new_zeros(())
    return x + noise * (share * power.sqrt()).clamp(min=_LEAST_NOISE)


def _noisy_map(x: Any, share: float) -> Any:
    is_map = isinstance(x, Tensor) and x.is_floating_point() and x.dim() == 4
    return _noisy(x, share) if is_map else x


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
