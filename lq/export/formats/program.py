"""A prepared module as a ``torch.export`` program: what pt2, ONNX and ExecuTorch start from."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from lq.backends.prepare import plan_of
from lq.compat.torch_private import layers_of_any_length, quiet_export, tree_map
from lq.compat.torchvision_private import any_number_of_results
from lq.conversion.reference import reference
from lq.export.artifact.calls import in_order
from lq.tracing.axes import ANY, BATCH, asked_axes, open_axes
from lq.tracing.call_signature import opened_output
from lq.tracing.samples import batch_size
from lq.tracing.structure import Inputs, map_tensors, tensors_of


def export_program(
    prepared: fx.GraphModule,
    example: Inputs,
    *,
    signed: bool = False,
    dynamic: bool = True,
    batch_alone: bool = False,
) -> tuple[ExportedProgram, bool]:
    """Export the QDQ graph of a prepared module.

    Args:
        prepared: in evaluation mode, with ranges.
        example: inputs of one call, on the CPU.
        signed: as in :func:`lq.conversion.reference.reference`.
        dynamic: leave sizes open, as :func:`lq.tracing.axes.open_axes` has them.
        batch_alone: of these that of the batch, or of first dimensions, alone.

    Returns:
        the program, and whether these are: a model whose code fixes the size stays fixed to the example's.

    Raises:
        ValueError: if the model cannot be exported.

    Example:
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.rand(8, 4)
        >>> program, dynamic = export_program(prepare_static(nn.Sequential(nn.Linear(4, 2)), [x]), ((x,), {}))
        >>> calls = [str(node.target).split(".")[1] for node in program.graph.nodes if node.op == "call_function"]
        >>> dynamic, calls[:2], calls[2:4]
        (True, ['quantize_per_tensor', 'dequantize_per_tensor'], ['dequantize_per_channel', 'linear'])
    """
    # Channels that lie last in memory would become operations that say so.
    model = _returning_tensors_alone(_in_plain_memory(reference(prepared, signed)))
    args, kwargs = map_tensors(example, contiguous)
    try:
        return float_program(model, (args, kwargs), dynamic, batch_alone)
    except RuntimeError as error:
        raise ValueError(f"torch.export cannot export {plan_of(prepared).model}: {error}") from error


def float_program(
    model: nn.Module, example: Inputs, dynamic: bool = True, batch_alone: bool = False
) -> tuple[ExportedProgram, bool]:
    """Export any module as it is.

    Args:
        model: in evaluation mode, on the CPU.
        example: inputs of one call.
        dynamic: leave sizes open, as :func:`lq.tracing.axes.open_axes` has them.
        batch_alone: of these that of the batch, or of first dimensions, alone.

    Returns:
        the program, and whether all first dimensions are dynamic.

    Raises:
        RuntimeError: if it cannot be exported, or not with the dimensions dynamic that its user has asked for.

    Example:
        >>> program, dynamic = float_program(nn.Linear(4, 2), ((torch.rand(8, 4),), {}))
        >>> dynamic, program.module()(torch.rand(3, 4)).shape
        (True, torch.Size([3, 2]))
        >>> float_program(nn.Unflatten(0, (4, 2)), ((torch.rand(8, 4),), {}))[1]
        False
    """
    # torch.export takes one tensor that is given twice for one input.
    example = map_tensors(in_order(model, example), lambda tensor: tensor.detach().clone())
    axes = open_axes(model, example, asked=not batch_alone) if dynamic else []
    with quiet_export(), layers_of_any_length(), any_number_of_results(), torch.no_grad():
        if any(axes):
            try:
                return _with_open_axes(model, example, axes)
            except Exception as error:
                if asked_axes(model) and not batch_alone:
                    raise RuntimeError(str(error)) from error
                logging.getLogger(__name__).debug("no dynamic sizes", exc_info=True)
        try:
            return torch.export.export(model, *example), False
        except Exception as error:
            raise RuntimeError(str(error)) from error


def _with_open_axes(
    model: nn.Module, example: Inputs, axes: Sequence[Mapping[int, str]]
) -> tuple[ExportedProgram, bool]:
    program = _open_program(model, example, axes)
    numbers = _numbers(program)
    lost = [wanted.keys() & fixed for wanted, fixed in zip(axes, numbers, strict=True)]
    if not any(lost):
        pairs = zip(numbers, tensors_of(example), strict=True)
        return program, all(0 not in fixed or tensor.shape[0] == 1 for fixed, tensor in pairs)
    rest = [{d: name for d, name in wanted.items() if d not in gone} for wanted, gone in zip(axes, lost, strict=True)]
    constant = [name for wanted, gone in zip(axes, lost, strict=True) for d, name in wanted.items() if d in gone]
    if set(constant) - {BATCH, ANY}:
        raise ValueError(f"torch.export makes constants of {', '.join(constant)}, of dynamic_axes")
    return (_open_program(model, example, rest) if any(rest) else torch.export.export(model, *example)), False


def _open_program(model: nn.Module, example: Inputs, axes: Sequence[Mapping[int, str]]) -> ExportedProgram:
    """With these dimensions dynamic: one for the batch of all inputs, and each other by itself."""
    rest, batch = iter(axes), Dim(BATCH)

    def shape(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        return {dim: batch if name == BATCH else Dim.AUTO for dim, name in next(rest).items()}

    dims = tree_map(shape, example)
    # torch.export takes a size of 0 or 1 for a constant.
    args, kwargs = map_tensors(example, _doubled) if batch_size(example) == 1 else example
    shapes = {**dict(zip(inspect.signature(model.forward).parameters, dims[0], strict=False)), **dims[1]}
    return torch.export.export(model, args, kwargs, dynamic_shapes=shapes)


def _numbers(program: ExportedProgram) -> list[frozenset[int]]:
    """For each input, the dimensions that are numbers, which ``Dim.AUTO`` says nothing of."""
    from torch.fx.experimental.symbolic_shapes import is_concrete_int  # brings sympy

    taken = program.graph_signature.user_inputs
    values = [node.meta["val"] for node in program.graph.find_nodes(op="placeholder") if node.name in taken]
    return [
        frozenset(dim for dim, size in enumerate(value.shape) if is_concrete_int(size))
        for value in values
        if isinstance(value, Tensor)
    ]


def contiguous(tensor: Tensor) -> Tensor:
    """A copy with the usual strides, also where a dimension has one element and torch does not care.

    Example:
        >>> contiguous(torch.zeros(1, 2, 3).transpose(0, 2)).stride()
        (2, 1, 1)
    """
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)


def _in_plain_memory(model: fx.GraphModule) -> fx.GraphModule:
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = contiguous(tensor.detach())
    return model


def _returning_tensors_alone(model: fx.GraphModule) -> fx.GraphModule:
    """With ``None`` for the numbers and texts among its outputs, which files do not hold: the signature has them."""
    output = model.graph.output_node()
    output.args = (_as_writable(opened_output(output.args[0])),)
    model.recompile()
    return model


def _as_writable(value: Any) -> Any:
    """Without what torch.export cannot write, or not read again: constants, and keys that are neither text nor int.

    Example:
        >>> _as_writable({"loss": 1.5, "by_place": {(0, 1): None}})
        {'loss': None, 'by_place': (None,)}
    """
    if isinstance(value, dict):
        parts = {key: _as_writable(part) for key, part in value.items()}
        return parts if all(type(key) in (str, int) for key in parts) else tuple(parts.values())
    if isinstance(value, (tuple, list)):
        return type(value)(map(_as_writable, value))
    return value if isinstance(value, fx.Node) else None


def _doubled(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor]) if tensor.dim() else tensor
