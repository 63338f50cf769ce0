"""What OpenVINO would compute on integers with other numbers than it was told: padding, and bounds."""

from __future__ import annotations

import math
from typing import Any

_POOLING = "AvgPool"
_KEEPS_GRID = ("MaxPool", "Pad", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_STEPS = (
    "Ceiling", "Convert", "Equal", "Floor", "FloorMod", "Greater", "GreaterEqual", "Less", "LessEqual", "Mod",
    "NotEqual", "Round", "Sign", "Bucketize",
)  # fmt: skip
_LOWEST = -3.4028234663852886e38  # of a float32


def keep_in_float(model: Any) -> None:
    """Put an operation that changes nothing in front of what integers would change, in place.

    OpenVINO 2026.4 moves pooling, padding and clamps in front of the scale and the zero point of their input, and there
    it

    - averages the padding that counts as the least value of the grid in place of 0, also that of a Pad in front, which
      becomes part of the pooling;
    - pads with 0 where a Pad along one dimension has another number;
    - rounds the bounds of a clamp to the grid.

    It moves nothing past a maximum.

    Args:
        model: an ``openvino.Model``, as its converter makes it of a QDQ graph.

    Example:
        >>> import numpy as np
        >>> import openvino
        >>> from openvino import opset13
        >>> x = opset13.parameter([4], np.float32)
        >>> model = openvino.Model([opset13.pad(x, [0], [1], "constant", np.float32(-9))], [x])
        >>> keep_in_float(model)
        >>> [node.get_type_name() for node in model.get_ordered_ops() if node.get_type_name() != "Constant"]
        ['Parameter', 'Maximum', 'Pad', 'Result']
    """
    from openvino import opset13

    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind in _IS_CHANGED and _IS_CHANGED[kind](node):
            given = node.input_value(0)
            limit = opset13.constant(_LOWEST, given.get_element_type())
            node.input(0).replace_source_output(opset13.maximum(given, limit).output(0))


def compare_exactly(model: Any) -> None:
    """Put values exactly on their grid in front of comparisons and of rounding, in place.

    OpenVINO 2026.4 computes what lies on a grid as a share of its range, so that 0 becomes a billionth, which is
    greater than 0, and whose tenth root is 0.1.

    Args:
        model: an ``openvino.Model``, as its converter makes it of a QDQ graph.

    Example:
        >>> import numpy as np
        >>> import openvino
        >>> from openvino import opset13
        >>> x, low, high = opset13.parameter([2], np.float32), np.float32(0), np.float32(25.5)
        >>> rounded = opset13.fake_quantize(x, low, high, low, high, levels=256)
        >>> model = openvino.Model([opset13.greater(rounded, low)], [x])
        >>> compare_exactly(model)
        >>> [node.get_type_name() for node in model.get_ordered_ops() if node.get_type_name() != "Constant"]
        ['Parameter', 'FakeQuantize', 'Divide', 'Round', 'Multiply', 'Greater', 'Result']
    """
    from openvino import opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() not in _STEPS and not _is_steep(node):
            continue
        for place in node.inputs():
            source = place.get_source_output().get_node()
            size_of = source.get_type_name() == "Abs"  # lies on the same multiples
            quantizer = _quantizer(source) if size_of else _quantizer(node, place.get_index())
            step = None if quantizer is None else _step(quantizer)
            if step:
                given = place.get_source_output()
                scale = opset13.constant(step, given.get_element_type())
                integers = opset13.round(opset13.divide(given, scale), "half_to_even")
                place.replace_source_output(opset13.multiply(integers, scale).output(0))


def _is_steep(node: Any) -> bool:
    """Whether a node is a power that is far from 0 a billionth away from it."""
    if node.get_type_name() != "Power":
        return False
    exponent = node.input_value(1).get_node()
    return exponent.get_type_name() != "Constant" or bool((exponent.data < 0.5).any())


def _pools_wrongly(node: Any) -> bool:
    attributes = node.get_attributes()
    pads = (*attributes["pads_begin"], *attributes["pads_end"])
    return any(pads) and not attributes["exclude-pad"] and not _has_zero(_quantizer(node))


def _pads_wrongly(node: Any) -> bool:
    if node.get_attributes()["pad_mode"] != "constant":
        return False
    if _number(node, 3) not in (0.0, None):
        return True
    readers = [reader.get_node().get_type_name() for reader in node.output(0).get_target_inputs()]
    return _POOLING in readers and not _has_zero(_quantizer(node))


def _clamps_wrongly(node: Any) -> bool:
    """Whether a bound lies within the range of a grid, and not on it."""
    quantizer = _quantizer(node)
    if quantizer is None:
        return False
    step, low, high = _step(quantizer), _number(quantizer, 3), _number(quantizer, 4)
    if step is None or low is None or high is None:
        return True
    bounds = (node.get_attributes()[name] for name in ("min", "max"))
    places = [(bound - low) / step for bound in bounds if low < bound < high]
    return any(abs(place - round(place)) > 1e-3 for place in places)


_IS_CHANGED = {_POOLING: _pools_wrongly, "Pad": _pads_wrongly, "Clamp": _clamps_wrongly}


def _step(quantizer: Any) -> float | None:
    low, high = _number(quantizer, 3), _number(quantizer, 4)
    if low is None or high is None or not high > low:
        return None
    return (high - low) / (quantizer.get_attributes()["levels"] - 1)  # type: ignore[no-any-return]


def _quantizer(node: Any, place: int = 0) -> Any:
    """The FakeQuantize on whose grid an input of a node lies, or ``None``."""
    source = node.input_value(place).get_node()
    while source.get_type_name() in _KEEPS_GRID:
        source = source.input_value(0).get_node()
    return source if source.get_type_name() == "FakeQuantize" else None


def _has_zero(quantizer: Any) -> bool:
    """Whether the integer 0 of a grid stands for the number 0."""
    if quantizer is None:
        return False
    low, high = _number(quantizer, 3), _number(quantizer, 4)
    return low == 0 or (low is not None and high is not None and math.isclose(low, -high * 128 / 127, rel_tol=1e-5))


def _number(node: Any, place: int) -> float | None:
    """The one number of a constant input, or ``None``."""
    if len(node.inputs()) <= place:
        return None
    constant = node.input_value(place).get_node()
    while constant.get_type_name() == "Convert":
        constant = constant.input_value(0).get_node()
    if constant.get_type_name() != "Constant":
        return None
    numbers = {float(number) for number in constant.data.flatten()[:2]}
    return numbers.pop() if len(numbers) == 1 else None
