"""``executorch``: a ``.pte`` file for phones and other devices, its layers in XNNPACK's int8 kernels.

See https://docs.pytorch.org/executorch/stable/backends/xnnpack/xnnpack-overview.html. The graph is the QDQ one with
int8 activations, which are XNNPACK's; grids of uint8 are moved by 128 and keep their values.

Limits: the file holds a batch of one, and :func:`load` runs sample by sample: with a dynamic batch XNNPACK (executorch
1.5) fixes tensors between its partitions to the largest one. Layers that stay float run in XNNPACK's float kernels or
ExecuTorch's portable ones. The number of threads is the runtime's own choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from lq.compat.torch_private import quiet_export
from lq.export.artifact.files import write_file
from lq.export.artifact.flat_model import FlatModel
from lq.export.artifact.manifest import MANIFEST_NAME
from lq.export.artifact.signature import Signature
from lq.export.formats.parts import call_of_one_part
from lq.export.formats.program import contiguous, export_program
from lq.fields import Field
from lq.tracing.samples import batch_size
from lq.tracing.structure import Inputs

FILE = "int8.pte"

_LAYERS = ("convolution", "conv1d", "conv2d", "conv3d", "linear", "addmm", "mm", "bmm")


def export(prepared: fx.GraphModule, example: Inputs, directory: Path) -> dict[str, Any]:
    """Write ``int8.pte``.

    Args:
        prepared: in evaluation mode, with ranges.
        example: inputs of one call, on the CPU.
        directory: where to.

    Returns:
        that the batch is fixed, its size, and which layers XNNPACK computes on integers.

    Raises:
        ValueError: if the model cannot be exported.

    Example:
        >>> import tempfile
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.rand(8, 4)
        >>> prepared = prepare_static(torch.nn.Sequential(torch.nn.Linear(4, 2)), [x])
        >>> with tempfile.TemporaryDirectory() as place:
        ...     info = export(prepared, ((x,), {}), Path(place))
        ...     [file.name for file in Path(place).iterdir()]
        ['int8.pte']
        >>> info["largest_batch"], sum(info["int8_layers"].values()), info["float_layers"]
        (1, 1, [])
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    sample = call_of_one_part(prepared, example)
    program, _ = export_program(prepared, sample, signed=True, dynamic=False)
    _one_dequantization_each(program)
    with quiet_export():
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        layers = _layers(edge.exported_program().graph_module)
        content = edge.to_executorch().buffer
    write_file(directory / FILE, content)
    return {"dynamic_batch": False, "largest_batch": batch_size(sample), **layers}


def load(
    directory: Path, signature: Signature, info: Mapping[str, Any], threads: int | None = None
) -> Callable[..., Any]:
    """``int8.pte`` in ExecuTorch's runtime, which chooses the number of threads.

    Example:
        >>> import tempfile
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.rand(8, 4)
        >>> prepared = prepare_static(torch.nn.Sequential(torch.nn.Linear(4, 2)), [x])
        >>> with tempfile.TemporaryDirectory() as place:
        ...     info = export(prepared, ((x,), {}), Path(place))
        ...     model = load(Path(place), Signature.of(prepared, ((x,), {}), prepared(x)), info)
        ...     model(x[:3]).shape  # sample by sample
        torch.Size([3, 2])
    """
    from executorch.runtime import Runtime

    largest = Field(info, f"{directory / MANIFEST_NAME}: artifacts.executorch")["largest_batch"]
    at_once = None if largest.value is None else largest.integer(1)
    method = Runtime.get().load_program(directory / FILE).load_method("forward")

    def run(tensors: list[Tensor]) -> list[Tensor]:
        # It refuses tensors that were made in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            given = [contiguous(t) for t in tensors]
            # A copy: the outputs lie in the runtime's own memory, which the next call overwrites.
            return [out.clone() for out in method.execute(given) if isinstance(out, Tensor)]

    return FlatModel(run, signature, at_once=at_once, one_call_at_a_time=True)


def _one_dequantization_each(program: ExportedProgram) -> None:
    """Give every reader of a quantized tensor its own dequantization: XNNPACK's partitions must not share any."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        for user in list(node.users)[1:] if "dequantize_per_tensor" in str(node.target) else ():
            with graph.inserting_after(node):
                twin = graph.node_copy(node)
            user.replace_input_with(node, twin)
    program.graph_module.recompile()


def _layers(outer: fx.GraphModule) -> dict[str, Any]:
    """Which layers compute on integers inside of XNNPACK, and which in float, there or outside."""
    lowered: list[Any] = [module for module in outer.children() if hasattr(module, "original_module")]
    inner = [module.original_module.graph_module for module in lowered]
    int8: Counter[str] = Counter()
    floating = []
    for graph in (outer, *inner):
        for node in graph.graph.nodes:
            kind = _kind(node)
            if kind not in _LAYERS:
                continue
            if graph is not outer and all(_is_dequantized(arg) for arg in node.args[:2]):
                int8[kind] += 1
            else:
                floating.append(f"{node.name} ({kind})")
    return {"int8_layers": dict(int8), "float_layers": floating}


def _kind(node: fx.Node) -> str:
    namespace_name_overload = str(getattr(node.target, "__name__", "")).split(".")
    return namespace_name_overload[1] if len(namespace_name_overload) > 1 else ""


def _is_dequantized(arg: Any) -> bool:
    """Whether a tensor comes from a dequantization, perhaps through a change of its shape."""
    while isinstance(arg, fx.Node):
        kind = _kind(arg)
        if "dequantize" in kind:
            return True
        if not kind.startswith(("permute", "t", "view", "transpose", "unsqueeze", "squeeze")):
            return False
        arg = arg.args[0]
    return False
