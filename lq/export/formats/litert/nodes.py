"""What the nodes of a ``torch.export`` program say, in words of the file."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from lq.compat.torch_private import OpOverload
from lq.export.formats.litert.call import Bounds
from lq.export.formats.litert.file import LiteRTGrid, Shape, Size
from lq.tracing.aten import arguments

QUANTIZE = "quantize_per_tensor"
DEQUANTIZE, DEQUANTIZE_CHANNELS = "dequantize_per_tensor", "dequantize_per_channel"
_WEIGHT = ".weight"


def operation(node: fx.Node) -> str:
    """The name of the operation, whatever its overload.

    Example:
        >>> program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2),))
        >>> [operation(node) for node in program.graph.nodes if node.op == "call_function"]
        ['relu']
    """
    return str(getattr(node.target, "_opname", node.target))


def gives_tensors(node: fx.Node) -> bool:
    """Whether the result is a tensor, or several, and no size.

    Example:
        >>> from lq.export.formats.program import float_program
        >>> program, _ = float_program(torch.nn.Unflatten(1, (-1, 3)), ((torch.zeros(4, 6),), {}))
        >>> {node.name: gives_tensors(node) for node in program.graph.nodes}
        {'input': True, 'unflatten': True, 'output': False}
    """
    return isinstance(node.meta.get("val"), (Tensor, list, tuple))


def _with_places(largest: Callable[..., Tensor], place: Callable[..., Tensor]) -> Callable[..., Any]:
    """The largest values along a dimension, and where they are, which is left out if nothing reads it."""

    def both(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
        return largest(x, dim, keepdim), place(x, dim, keepdim)

    return both


_APART: Mapping[Any, Callable[..., Any]] = {  # what PyTorch does not take apart
    torch.ops.aten.max.dim: _with_places(torch.amax, torch.argmax),
    torch.ops.aten.min.dim: _with_places(torch.amin, torch.argmin),
    torch.ops.aten.max.default: torch.amax,
    torch.ops.aten.min.default: torch.amin,
}


def in_known_operations(program: ExportedProgram, known: frozenset[str]) -> ExportedProgram:
    """With operations that are not known taken apart, which takes as long as the export did.

    Example:
        >>> program = torch.export.export(torch.nn.SiLU(), (torch.zeros(2),))
        >>> apart = in_known_operations(program, frozenset({"sigmoid", "mul"}))
        >>> [operation(node) for node in apart.graph.nodes if node.op == "call_function"]
        ['sigmoid', 'mul']
    """
    calls = [node for node in program.graph.nodes if node.op == "call_function" and gives_tensors(node)]
    kept = {*known, QUANTIZE, DEQUANTIZE, DEQUANTIZE_CHANNELS}
    if all(node.target is operator.getitem or operation(node) in kept for node in calls):
        return program
    table = torch.export.default_decompositions()
    for overload in list(table):
        if getattr(overload, "_opname", "") in kept:
            del table[overload]
    for overload, function in _APART.items():
        table[overload] = function
    apart: ExportedProgram = program.run_decompositions(table)
    return apart


@dataclass
class ProgramConstants:
    """What a program holds.

    Args:
        tensors: by the names of their placeholders.
        layers: of the placeholders that are weights, the layers that have them.

    Example:
        >>> program = torch.export.export(torch.nn.Sequential(torch.nn.Linear(2, 1)), (torch.zeros(4, 2),))
        >>> held = ProgramConstants.of(program)
        >>> list(held.tensors), held.layers
        (['p_0_weight', 'p_0_bias'], {'p_0_weight': '0'})
    """

    tensors: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, program: ExportedProgram) -> ProgramConstants:
        """The parameters, buffers and lifted constants of a program."""
        found = cls()
        for spec in program.graph_signature.input_specs:
            if spec.kind == InputKind.USER_INPUT:
                continue
            target = str(spec.target)
            held: Mapping[str, Any] = program.state_dict if target in program.state_dict else program.constants
            found.tensors[spec.arg.name] = held.get(target)
            if target.endswith(_WEIGHT):
                found.layers[spec.arg.name] = target.removesuffix(_WEIGHT)
        return found


def grid_of(quantize: fx.Node) -> LiteRTGrid:
    """Where a quantization rounds to.

    Example:
        >>> from lq.export.formats.program import export_program
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.tensor([[-1.0, 1.0]])
        >>> prepared = prepare_static(torch.nn.Sequential(torch.nn.Linear(2, 1)), [x], "litert")
        >>> program, _ = export_program(prepared, ((x,), {}), signed=True)
        >>> next(grid_of(node) for node in program.graph.nodes if operation(node) == QUANTIZE)
        LiteRTGrid(scales=(0.007843137718737125,), zero_point=-1, axis=0)
    """
    _, scale, zero_point, *_ = quantize.args
    return LiteRTGrid.of(scale, zero_point)  # type: ignore[arg-type]


def grid_of_input(node: fx.Node) -> LiteRTGrid:
    """The one grid that an input is rounded to.

    Raises:
        ValueError: if it is read in float too, or on several grids.

    Example:
        >>> from lq.export.formats.program import export_program
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.tensor([[-1.0, 1.0]])
        >>> prepared = prepare_static(torch.nn.Sequential(torch.nn.Linear(2, 1)), [x], "litert")
        >>> program, _ = export_program(prepared, ((x,), {}), signed=True)
        >>> grid_of_input(next(node for node in program.graph.nodes if node.name == "input"))
        LiteRTGrid(scales=(0.007843137718737125,), zero_point=-1, axis=0)
    """
    grids = {grid_of(reader) if operation(reader) == QUANTIZE else None for reader in _readers(node)}
    grid = grids.pop() if len(grids) == 1 else None
    if grid is None:
        raise ValueError(
            f"inputs='int8': input {node.name!r} is also read in float, so it can only be float32; write "
            "inputs='float32', or let quantized layers alone read it."
        )
    return grid


def _readers(node: fx.Node) -> list[fx.Node]:
    """Who reads it; of a clamp, which a grid of few bits has before it, those who read that: it can clamp integers."""
    return [reader for user in node.users for reader in (user.users if bounds_of(user) else [user])]


def bounds_of(node: fx.Node) -> Bounds | None:
    """What an activation lets pass; ``None`` for other operations.

    Example:
        >>> program = torch.export.export(torch.nn.Sequential(torch.nn.ReLU6(), torch.nn.Tanh()), (torch.zeros(2),))
        >>> [bounds_of(node) for node in program.graph.nodes if node.op == "call_function"]
        [Bounds(low=0.0, high=6.0), None]
    """
    name = operation(node)
    if name in ("relu", "relu6"):
        return Bounds(0.0, 6.0 if name == "relu6" else math.inf)
    if name not in ("hardtanh", "clamp", "clamp_min"):
        return None
    given = named(node)
    low, high = (given.get(f"{end}_val", given.get(end)) for end in ("min", "max"))
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        return None
    return Bounds(-math.inf if low is None else float(low), math.inf if high is None else float(high))


def named(node: fx.Node) -> dict[str, Any]:
    """All arguments by name.

    Example:
        >>> program = torch.export.export(torch.nn.Hardtanh(max_val=2.0), (torch.zeros(2),))
        >>> [named(node) for node in program.graph.nodes if node.op == "call_function"]
        [{'self': input, 'min_val': -1.0, 'max_val': 2.0}]
    """
    assert isinstance(node.target, OpOverload)
    return arguments(node.target, node.args, node.kwargs)


def sizes_of(example: Tensor) -> Shape:
    """The sizes of a tensor of the program; a symbol stands for the batch.

    Example:
        >>> sizes_of(torch.zeros(2, 3))
        (Size(length=2, changes=False), Size(length=3, changes=False))
    """
    return tuple(map(_size, example.shape))


def _size(size: int | torch.SymInt) -> Size:
    if isinstance(size, int):
        return Size(size)
    expression = size.node.expr
    return Size(int(expression.subs(dict.fromkeys(expression.free_symbols, 1))), True)
