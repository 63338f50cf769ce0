"""What the NPU makes of a file: which layers compute on integers, which in float."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lq.export.artifact.scratch import scratch
from lq.export.formats.qnn.session import Target, cpu_operators, open_session

_LAYERS = ("Conv1d", "Conv2d", "Conv3d", "DepthWiseConv2d", "TransposeConv2d", "FullyConnected", "MatMul")
# QNN's numbers of types, as in its header QnnTypes.h: float of 16 and of 32 bits, which the NPU computes in 16.
_FLOATS = (0x0216, 0x0232)
_COPY = re.compile(r"_token_\d+$")  # ONNX Runtime's own mark of a node that it has changed


def describe(path: Path, target: Target) -> dict[str, Any]:
    """Open a file and look at the graph that the provider has built.

    Args:
        path: the file.
        target: what shall run it.

    Returns:
        layers on integers by kind, layers and operators in float by name, and what the CPU computes.

    Raises:
        ValueError: as in :func:`lq.export.formats.qnn.session.open_session`.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 20]>
        ... g (float[1,4] x) => (float[1,4] y) <float s = {0.5}, uint8 z = {3}> {
        ...     q = QuantizeLinear(x, s, z)
        ...     dq = DequantizeLinear(q, s, z)
        ...     r = Relu(dq)
        ...     qr = QuantizeLinear(r, s, z)
        ...     y = DequantizeLinear(qr, s, z)
        ... }''')
        >>> with scratch() as place:
        ...     onnx.save(model, place / "relu.onnx")
        ...     describe(place / "relu.onnx", Target(soc_model=43, cpu_fallback=False))
        {'int8_layers': {}, 'float_layers': [], 'float_operators': [], 'cpu_operators': []}
    """
    with scratch() as place:
        dump = {"dump_json_qnn_graph": "1", "json_qnn_graph_dir": str(place)}
        trace = {"enable_framework_op_trace": "1", "framework_op_trace_dir": str(place)}
        open_session(path, target, **dump, **trace)
        on_cpu = cpu_operators(place)
        operators = list(_operators(place))
    int8 = Counter(kind for _, kind, in_float in operators if kind in _LAYERS and not in_float)
    floating = [(name, kind) for name, kind, in_float in operators if in_float]
    return {
        "int8_layers": dict(int8),
        "float_layers": [f"{name} ({kind})" for name, kind in floating if kind in _LAYERS],
        "float_operators": [f"{name} ({kind})" for name, kind in floating if kind not in _LAYERS],
        "cpu_operators": on_cpu,
    }


def _operators(place: Path) -> Iterator[tuple[str, str, bool]]:
    """Name and kind of each, and whether it computes in float; the ends of integers do not count."""
    for file in sorted(place.glob("*.json")):
        graph: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8")).get("graph", {})
        for name, node in graph.get("nodes", {}).items():
            types = [graph["tensors"][output]["data_type"] for output in node["output_names"]]
            in_float = node["type"] != "Dequantize" and any(kind in _FLOATS for kind in types)
            yield _COPY.sub("", name), node["type"], in_float
