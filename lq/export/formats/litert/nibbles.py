"""Weights of four bits and fewer in a ``.tflite`` file, two in a byte.

Source:
    Versions of operators as in TensorFlow Lite's ``tools/versioning/op_version.cc``.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from lq.export.formats.litert.file import File, FileOperator
from lq.export.formats.low_bits import fits_in_four_bits, two_in_a_byte

_VERSIONS = {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 7, "FULLY_CONNECTED": 10}  # that know such weights


def with_int4_weights(file: File) -> File:
    """The file with int4 weights where their integers fit and all operators that read them know such.

    Args:
        file: is left as it is.

    Example:
        >>> import numpy as np
        >>> from lq.export.formats.litert.file import FileTensor, LiteRTGrid, Size
        >>> file, grid = File(), LiteRTGrid.of(0.5, 0)
        >>> x = file.tensor(FileTensor("x", (Size(1), Size(4)), "int8", grid))
        >>> y = file.tensor(FileTensor("y", (Size(1), Size(1)), "int8", grid))
        >>> weight = file.constant("weight", np.int8([[7, -7, 1, 0]]), grid)
        >>> file.operator("FULLY_CONNECTED", [x, weight, -1], [y], "FullyConnectedOptions")
        >>> made = with_int4_weights(file)
        >>> made.tensors[weight].dtype, made.tensors[weight].content.nbytes, made.operators[0].version
        ('int4', 2, 10)
    """
    readers: dict[int, list[FileOperator]] = defaultdict(list)
    for operator in file.operators:
        for tensor in operator.inputs:
            readers[tensor].append(operator)
    small = {t for t, operators in readers.items() if _fits(file, t) and all(_knows(file, o, t) for o in operators)}
    made = File()
    made.tensors = [
        replace(tensor, dtype="int4", content=two_in_a_byte(tensor.content)) if index in small else tensor
        for index, tensor in enumerate(file.tensors)
    ]
    made.operators = [
        replace(operator, version=_VERSIONS[operator.kind]) if small & set(operator.inputs) else operator
        for operator in file.operators
    ]
    return made


def _fits(file: File, tensor: int) -> bool:
    found = file.tensors[tensor] if tensor >= 0 else None
    return (
        found is not None and found.dtype == "int8" and found.content is not None and fits_in_four_bits(found.content)
    )


def _knows(file: File, operator: FileOperator, weight: int) -> bool:
    """Whether an operator on integers reads this tensor as its weight, and nowhere else."""
    x, *others = operator.inputs
    is_weight = others[:1] == [weight] and weight not in (x, *others[1:])
    return operator.kind in _VERSIONS and is_weight and file.tensors[x].dtype == "int8"
