"""A prepared module as a ``torch.export`` program: what pt2, ONNX and ExecuTorch start from."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from lq.backends.prepare import plan_of
from lq.compat.torch_private import quiet_export, tree_map
from lq.compat.torchvision_private import any_number_of_results
from lq.conversion.reference import reference
from lq.export.artifact.signature import in_order
from lq.tracing.batch import open_sizes
from lq.tracing.samples import batch_size
from lq.tracing.structure import Inputs, map_tensors

BATCH = "batch"


def export_program(
    prepared: fx.GraphModule,
    example: Inputs,
    *,
    signed: bool = False,
    dynamic: bool = True,
) -> tuple[ExportedProgram, bool]:
    """Export the QDQ graph of a prepared module.

    Args:
        prepared: in evaluation mode, with ranges.
        example: inputs of one call, on the CPU.
        signed: as in :func:`lq.conversion.reference.reference`.
        dynamic: let first dimensions of the inputs be any, as :func:`lq.tracing.batch.open_sizes` has them.

    Returns:
        the program, and whether these are: a model whose code fixes the size stays fixed to the example's.

    Raises:
        ValueError: if the model cannot be exported.
    """
    # Channels that lie last in memory would become operations that say so.
    model = _returning_tensors_alone(_in_plain_memory(reference(prepared, signed)))
    args, kwargs = map_tensors(example, contiguous)
    try:
        return float_program(model, (args, kwargs), dynamic)
    except RuntimeError as error:
        raise ValueError(f"torch.export cannot export {plan_of(prepared).model}: {error}") from error


def float_program(model: nn.Module, example: Inputs, dynamic: bool = True) -> tuple[ExportedProgram, bool]:
    """Export any module as it is.

    Args:
        model: in evaluation mode, on the CPU.
        example: inputs of one call.
        dynamic: let first dimensions of the inputs be any: their batch, or each of them where they share none.

    Returns:
        the program, and whether all of these are dynamic.

    Raises:
        RuntimeError: if it cannot be exported.
    """
    example = in_order(model, example)
    sizes = open_sizes(model, example) if dynamic else frozenset()
    with quiet_export(), any_number_of_results(), torch.no_grad():
        if sizes:
            try:
                program = _open_program(model, example, sizes)
                constant = _constant_sizes(program) - {1}
                if sizes.isdisjoint(constant):
                    return program, not constant
                if sizes - constant:
                    return _open_program(model, example, sizes - constant), False
            except Exception:
                logging.getLogger(__name__).debug("no dynamic sizes", exc_info=True)
        try:
            return torch.export.export(model, *example), False
        except Exception as error:
            raise RuntimeError(str(error)) from error


def _open_program(model: nn.Module, example: Inputs, sizes: Collection[int]) -> ExportedProgram:
    """With first dimensions of these sizes dynamic: one for all inputs where they share it, else each by itself."""
    size = batch_size(example)
    first = {0: Dim.AUTO if size is None else Dim(BATCH)}
    dims = tree_map(lambda leaf: first if _first(leaf) in sizes else None, example)
    # torch.export takes a size of 0 or 1 for a constant.
    args, kwargs = tree_map(_doubled, example) if size == 1 else example
    shapes = {**dict(zip(inspect.signature(model.forward).parameters, dims[0], strict=False)), **dims[1]}
    return torch.export.export(model, args, kwargs, dynamic_shapes=shapes)


def _constant_sizes(program: ExportedProgram) -> frozenset[int]:
    """The first dimensions of its inputs that are numbers, which ``Dim.AUTO`` says nothing of."""
    from torch.fx.experimental.symbolic_shapes import is_concrete_int  # brings sympy

    taken = program.graph_signature.user_inputs
    firsts = [_first(node.meta["val"]) for node in program.graph.find_nodes(op="placeholder") if node.name in taken]
    return frozenset(int(size) for size in firsts if size is not None and is_concrete_int(size))


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
    output.args = fx.node.map_aggregate(output.args, lambda leaf: leaf if isinstance(leaf, fx.Node) else None)
    model.recompile()
    return model


def _first(leaf: Any) -> Any:
    return leaf.shape[0] if isinstance(leaf, Tensor) and leaf.dim() else None


def _doubled(leaf: Any) -> Any:
    return torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.dim() else leaf
