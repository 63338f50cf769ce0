"""A ``.tflite`` file in the making, as text: what a developer prints to see what became of a network.

A line says ``result: type [shape] = OPERATOR(tensors, options)``. Integers on a grid are shown as the formula of the
real value, ``scale * (int8 - zero_point)``; constants of a few elements as the real values that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lq.compat.torch_private import register_decomposed, tree_map
from lq.export.formats.litert.ends import Ends
from lq.export.formats.litert.file import Array, File, FileOperator, FileTensor, LiteRTGrid, Size
from lq.export.formats.litert.translation import translate
from lq.export.formats.program import float_program

_SHOWN = 8  # elements of a constant
_LARGE = 1e6  # from here on a number is shown by its digits and its power of ten


def listing(file: File) -> str:
    """The operators of a file, one a line.

    Options are left out where they have the schema's default, as ``padding=SAME`` and strides of 0 are.

    Example:
        >>> file = File()
        >>> x = file.tensor(FileTensor("x", (Size(1, changes=True), Size(3))))
        >>> half = file.constant("half", np.float32([0.5]))
        >>> y = file.tensor(FileTensor("y", (Size(1, changes=True), Size(3))))
        >>> file.operator("ADD", [x, half], [y], "AddOptions", fusedActivationFunction=1)
        >>> print(listing(file))
        y: float32 [batch, 3] = ADD(x, [0.5], RELU)
    """
    written = {index for operator in file.operators for index in operator.outputs}
    return "\n".join(_line(file, operator, written) for operator in file.operators)


def listing_of(function: Callable[..., Any], step: float | None = None, **inputs: Tensor) -> str:
    """What a function of tensors is written as. Images, in and out, have their channels last.

    Args:
        function: of the inputs, in their order; a module is called "layer".
        step: round floating inputs and results to multiples of it, as int8 with the zero point 0; ``None`` leaves all
            in float.
        inputs: examples, by the names that the listing has for them.

    Raises:
        UnsupportedError: if LiteRT has no operator for it.

    Example:
        >>> print(listing_of(torch.nn.functional.silu, x=torch.zeros(2, 3)))
        silu/sigmoid: float32 [2, 3] = LOGISTIC(x)
        silu: float32 [2, 3] = MUL(x, silu/sigmoid)
        >>> print(listing_of(torch.nn.functional.silu, step=0.5, x=torch.zeros(2, 3)))
        silu/sigmoid: 0.003906 * (int8 + 128) [2, 3] = LOGISTIC(x)
        silu: 0.5 * int8 [2, 3] = MUL(x, silu/sigmoid)
    """
    register_decomposed()
    program, _ = float_program(_Rounded(function, step).eval(), ((), inputs), dynamic=False)
    ends = Ends(int8_inputs=step is not None, channels_last=True)
    made = translate(program, ends)
    for value in made.outputs:
        made.net.ordered(value, ends.order(len(made.net.shape(value))))
    return listing(made.net.file)


class _Rounded(nn.Module):
    """A function between tensors on a grid."""

    def __init__(self, function: Callable[..., Any], step: float | None) -> None:
        super().__init__()
        self.layer, self.step = function, step

    def forward(self, **inputs: Tensor) -> Any:
        return tree_map(self._on_grid, self.layer(*map(self._on_grid, inputs.values())))

    def _on_grid(self, x: Tensor) -> Tensor:
        if self.step is None or not x.is_floating_point():
            return x
        decomposed, ends = torch.ops.quantized_decomposed, (-128, 127, torch.int8)
        integers = decomposed.quantize_per_tensor(x, self.step, 0, *ends)
        rounded: Tensor = decomposed.dequantize_per_tensor(integers, self.step, 0, *ends)
        return rounded


def _line(file: File, operator: FileOperator, written: set[int]) -> str:
    made = ", ".join(f"{file.tensors[i].name}: {_form(file.tensors[i])}" for i in operator.outputs)
    tensors = [_argument(file.tensors[index]) for index in operator.inputs if index >= 0]
    return f"{made} = {operator.kind}({', '.join([*tensors, *_options(operator)])})"


def _form(tensor: FileTensor) -> str:
    """Type and shape."""
    grid = tensor.grid
    sizes = ", ".join(map(_size, tensor.shape))
    return f"{tensor.dtype if grid is None else _formula(grid, tensor.dtype)} [{sizes}]"


def _size(size: Size) -> str:
    if not size.changes:
        return str(size.length)
    return "batch" if size.length == 1 else f"{size.length} * batch"


def _formula(grid: LiteRTGrid, dtype: str) -> str:
    scale = f"{grid.scale:.4g}" if len(grid.scales) == 1 else "scales"
    if not grid.zero_point:
        return f"{scale} * {dtype}"
    return f"{scale} * ({dtype} {'-' if grid.zero_point > 0 else '+'} {abs(grid.zero_point)})"


def _argument(tensor: FileTensor) -> str:
    if tensor.content is None:
        return tensor.name
    if tensor.content.size > _SHOWN:
        return f"{tensor.name}: {_form(tensor)}"
    return str(np.vectorize(_number, otypes=[object])(_real(tensor.content, tensor.grid)).tolist())


def _real(content: Array, grid: LiteRTGrid | None) -> Array:
    if grid is None:
        return content
    shape = [1] * content.ndim
    if len(grid.scales) > 1:
        shape[grid.axis] = -1
    real: Array = (content - float(grid.zero_point)) * np.array(grid.scales).reshape(shape)
    return real


def _number(value: Any) -> Any:
    """With four digits, and whole ones as such."""
    rounded = float(f"{float(value):.4g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < _LARGE else rounded


def _options(operator: FileOperator) -> list[str]:
    from ai_edge_litert import schema_py_generated as schema

    if not operator.options:
        return []
    usual = vars(getattr(schema, f"{operator.options}T")())
    found = []
    for name, value in operator.settings.items():
        if name == "fusedActivationFunction" and value:
            found.append(_name_of(schema.ActivationFunctionType, value))
        elif value != usual[name] and not isinstance(value, list):
            found.append(f"{name}={_name_of(schema.Padding, value) if name == 'padding' else value}")
    return found


def _name_of(enumeration: Any, code: int) -> str:
    return next(str(name) for name, value in vars(enumeration).items() if value == code and not name.startswith("_"))
