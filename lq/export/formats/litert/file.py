"""A ``.tflite`` file in the making: tensors and operators.

Source:
    Versions of operators as in TensorFlow Lite's ``tools/versioning/op_version.cc``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

# The version of an operator that knows int8; 2 for most.
_ONE_VERSION = frozenset({"QUANTIZE", "RESHAPE", "HARD_SWISH", "LEAKY_RELU", "ELU", "SQUEEZE", "EXPAND_DIMS", "SHAPE"})
_INT8_VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 5, "TRANSPOSE_CONV": 3, "TILE": 3, "REVERSE_V2": 3,
    "BROADCAST_TO": 3,
}  # fmt: skip
_FLOAT_VERSIONS = {"BROADCAST_TO": 2, "FULLY_CONNECTED": 5, "TRANSPOSE_CONV": 3}


@dataclass(frozen=True)
class LiteRTGrid:
    """Where the int8 values of a tensor lie: ``real = scale * (q - zero_point)``.

    Args:
        scales: float32, one for the tensor or one for each channel.
        zero_point: of all of them.
        axis: that of the channels.

    Example:
        >>> grid = LiteRTGrid.of(0.1, -128)
        >>> grid.scale, grid.integer(0.0), grid.integer(30.0)
        (0.10000000149011612, -128, 172)
    """

    scales: tuple[float, ...]
    zero_point: int = 0
    axis: int = 0

    @classmethod
    def of(cls, scale: float, zero_point: int) -> LiteRTGrid:
        """The grid of a whole tensor; the scale is rounded to float32, in which files keep it."""
        return cls((float(np.float32(scale)),), zero_point)

    @property
    def scale(self) -> float:
        """The scale of a whole tensor."""
        (scale,) = self.scales
        return scale

    def integer(self, real: float) -> int:
        """The nearest integer to a real value, which may lie beyond int8."""
        return round(real / self.scale) + self.zero_point


class Size(NamedTuple):
    """One dimension of a tensor: its size, for a batch of one, and whether it changes with the batch.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.nodes import sizes_of
        >>> from lq.export.formats.program import float_program
        >>> program, _ = float_program(torch.nn.ReLU(), ((torch.zeros(4, 3),), {}))
        >>> [sizes_of(node.meta["val"]) for node in program.graph.find_nodes(op="placeholder")]
        [(Size(length=1, changes=True), Size(length=3, changes=False))]
    """

    length: int
    changes: bool = False


Shape: TypeAlias = tuple[Size, ...]


@dataclass(frozen=True)
class FileTensor:
    """A tensor as the file has it.

    Args:
        name: shown by viewers and profilers, so that no other tensor of a file has it.
        shape: its sizes.
        dtype: of numpy, by name.
        grid: of int8 and int32 values.
        content: of a constant.

    Example:
        >>> file = File()
        >>> half = file.constant("half", np.float32([0.5]))
        >>> file.tensors[half].name, file.tensors[half].shape, file.tensors[half].content
        ('half', (Size(length=1, changes=False),), array([0.5], dtype=float32))
    """

    name: str
    shape: Shape
    dtype: str = "float32"
    grid: LiteRTGrid | None = None
    content: Array | None = None


@dataclass(frozen=True)
class FileOperator:
    """An operator: its name in the schema, tensors by index (-1 where one is left out), and options.

    Example:
        >>> file = File()
        >>> x, y = (file.tensor(FileTensor(name, (Size(3),), "int8", LiteRTGrid.of(0.5, 0))) for name in "xy")
        >>> file.operator("RELU", [x], [y])
        >>> file.operators
        [FileOperator(kind='RELU', inputs=(0,), outputs=(1,), options='', settings={}, version=2)]
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: str
    settings: Mapping[str, Any]
    version: int


class File:
    """Collects tensors and operators.

    Example:
        >>> from lq.export.formats.litert.listing import listing
        >>> file = File()
        >>> x, y = (file.tensor(FileTensor(name, (Size(2),))) for name in "xy")
        >>> file.operator("MUL", [x, file.constant("factors", np.float32([2, 3]))], [y], "MulOptions")
        >>> print(listing(file))
        y: float32 [2] = MUL(x, [2, 3])
    """

    def __init__(self) -> None:
        self.tensors: list[FileTensor] = []
        self.operators: list[FileOperator] = []
        self._names: Counter[str] = Counter()

    def tensor(self, tensor: FileTensor) -> int:
        """Add a tensor, with a number behind a name that another one has; returns its index."""
        name = tensor.name
        while name in self._names:
            self._names[tensor.name] += 1
            name = f"{tensor.name}_{self._names[tensor.name]}"
        self._names[name] = 1
        self.tensors.append(replace(tensor, name=name))
        return len(self.tensors) - 1

    def constant(self, name: str, content: Array, grid: LiteRTGrid | None = None) -> int:
        """Add a tensor with values."""
        return self.tensor(FileTensor(name, tuple(map(Size, content.shape)), content.dtype.name, grid, content))

    def operator(
        self,
        kind: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: str = "",
        version: int = 0,
        **settings: Any,
    ) -> None:
        """Add an operator.

        Args:
            kind: its name in the schema's ``BuiltinOperator``.
            inputs: indices of tensors.
            outputs: likewise.
            options: the schema's class of its options, "" if it has none.
            version: 0 takes the one that its types need.
            settings: of these options.
        """
        version = version or self._version(kind, [*inputs, *outputs])
        self.operators.append(FileOperator(kind, tuple(inputs), tuple(outputs), options, settings, version))

    def _version(self, kind: str, tensors: Sequence[int]) -> int:
        if not any(self.tensors[i].dtype == "int8" for i in tensors if i >= 0):
            return _FLOAT_VERSIONS.get(kind, 1)
        return 1 if kind in _ONE_VERSION else _INT8_VERSIONS.get(kind, 2)
