"""A prepared module as a ``torch.export`` program: what pt2, ONNX and ExecuTorch start from."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from lq.backends.prepare import plan_of
from lq.compat.torch_private import quiet_export, tree_map
from lq.compat.torchvision_private import any_number_of_results
from lq.conversion.reference import reference
from lq.export.artifact.signature import in_order
from lq.tracing.batch import fixed_batch
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
        dynamic: let the first dimension of the inputs be any, if they share it.

    Returns:
        the program, and whether its batch is dynamic: a model whose code fixes the size stays fixed to the example's.

    Raises:
        ValueError: if the model cannot be exported.
    """
    dynamic = dynamic and fixed_batch(prepared) is None
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
        dynamic: let the first dimension of the inputs be any, if they share it.

    Returns:
        the program, and whether its batch is dynamic.

    Raises:
        RuntimeError: if it cannot be exported.
    """
    example = in_order(model, example)
    size = batch_size(example)
    with quiet_export(), any_number_of_results(), torch.no_grad():
        if dynamic and size is not None:
            # torch.export takes a size of 0 or 1 for a constant.
            args, kwargs = tree_map(_doubled, example) if size == 1 else example
            batch = Dim(BATCH)
            dims = tree_map(
                lambda leaf: {0: batch} if isinstance(leaf, Tensor) and leaf.dim() else None, (args, kwargs)
            )
            shapes = {**dict(zip(inspect.signature(model.forward).parameters, dims[0], strict=False)), **dims[1]}
            try:
                return torch.export.export(model, args, kwargs, dynamic_shapes=shapes), True
            except Exception:
                logging.getLogger(__name__).debug("no dynamic batch", exc_info=True)
        try:
            return torch.export.export(model, *example), False
        except Exception as error:
            raise RuntimeError(str(error)) from error


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


def _doubled(leaf: Any) -> Any:
    return torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.dim() else leaf
