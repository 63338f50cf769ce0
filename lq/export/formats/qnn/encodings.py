"""AIMET's ``.encodings``: scale and zero point of each tensor of a float ONNX file, as Qualcomm's converters take them.

Layout 1.0.0, which AIMET writes by default and ``qairt-converter --quantization_overrides`` reads. AIMET's class
``AffineEncoding`` (aimet_onnx/_encoding.py of aimet-onnx 2.42) says what its fields mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lq.export.artifact.files import write_file
from lq.export.artifact.manifest import DISTRIBUTION
from lq.export.formats.onnx_file import write_model
from lq.export.formats.qnn.float_graph import without_pairs
from lq.export.formats.qnn.grids import QNNGrid

FLOAT_FILE, ENCODINGS_FILE = "int8.qnn.float.onnx", "int8.qnn.encodings"
VERSION = "1.0.0"


def write_encodings(path: Path) -> None:
    """Write ``int8.qnn.float.onnx`` and ``int8.qnn.encodings`` beside a QDQ file.

    Args:
        path: of the QDQ file.

    Raises:
        ValueError: if ONNX's checker finds fault with the float file.
        OSError: if the disk refuses.

    Example:
        >>> import onnx, tempfile
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 20]>
        ... g (float[2] x) => (float[2] y) <float s = {0.5}, uint8 z = {3}> {
        ...     q = QuantizeLinear(x, s, z)
        ...     dq = DequantizeLinear(q, s, z)
        ...     y = Abs(dq)
        ... }''')
        >>> with tempfile.TemporaryDirectory() as place:
        ...     onnx.save(model, Path(place, "int8.qnn.onnx"))
        ...     write_encodings(Path(place, "int8.qnn.onnx"))
        ...     found = json.loads(Path(place, ENCODINGS_FILE).read_text())
        >>> [(entry["name"], entry["scale"], entry["offset"]) for entry in found["activation_encodings"]]
        [('x', [0.5], [-3])]
    """
    import onnx

    made = without_pairs(onnx.load(path))
    write_model(made.model, path.with_name(FLOAT_FILE))
    content = encodings(made.activations, made.parameters)
    write_file(path.with_name(ENCODINGS_FILE), f"{json.dumps(content)}\n".encode())


def encodings(activations: Mapping[str, QNNGrid], parameters: Mapping[str, QNNGrid]) -> dict[str, Any]:
    """The content of a file of encodings.

    The offset is that of unsigned integers, and its sign is the other one: ``value = scale * (integer + offset)`` with
    integers from 0 on. The layout has no axis of channels; readers know that of each layer.

    Args:
        activations: grid by the name of a tensor.
        parameters: grid by the name of a weight or bias.

    Example:
        >>> made = encodings({"x": QNNGrid((0.5,), (3,), 8, signed=False)}, {})
        >>> entry, = made["activation_encodings"]
        >>> entry["name"], entry["enc_type"], entry["bw"], entry["is_sym"], entry["scale"], entry["offset"]
        ('x', 'PER_TENSOR', 8, False, [0.5], [-3])
    """
    return {
        "version": VERSION,
        "producer": {"package": DISTRIBUTION},
        "activation_encodings": [_entry(name, grid) for name, grid in activations.items()],
        "param_encodings": [_entry(name, grid) for name, grid in parameters.items()],
    }


def _entry(name: str, grid: QNNGrid) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": "INT",
        "bw": grid.bits,
        "enc_type": "PER_TENSOR" if grid.axis is None else "PER_CHANNEL",
        "is_sym": grid.signed and not any(grid.zero_point),
        "scale": list(grid.scale),
        "offset": [grid.lowest - zero for zero in grid.zero_point],
    }
