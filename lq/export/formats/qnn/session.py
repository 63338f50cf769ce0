"""ONNX Runtime with Qualcomm's execution provider: the NPU of a Snapdragon, or its simulator on x86-64."""

from __future__ import annotations

import json
import platform
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lq.export.artifact.scratch import scratch
from lq.messages import some_of

# On other machines the package runs the chip's own NPU.
SIMULATES = platform.machine() in ("x86_64", "AMD64")

_NO_CPU = "session.disable_cpu_ep_fallback"
_FATAL = 4  # what it would print of lesser errors stands in the exception
_TRACE = "qnn_op_trace.json"


@dataclass(frozen=True)
class Target:
    """What shall run a file.

    Args:
        soc_model: Qualcomm's number of the chip whose NPU is simulated; a chip itself knows what it is.
        cpu_fallback: whether the CPU may compute what the NPU cannot.

    Example:
        >>> target = Target(soc_model=43, cpu_fallback=False)
        >>> replace(target, cpu_fallback=True)  # as a model is opened to see what the NPU lacks
        Target(soc_model=43, cpu_fallback=True)
    """

    soc_model: int
    cpu_fallback: bool


def open_session(path: Path, target: Target, **options: str) -> Any:
    """Open an ONNX file on the NPU.

    Args:
        path: the file, with fixed shapes.
        target: what shall run it.
        options: more of the provider's.

    Returns:
        an ``onnxruntime.InferenceSession``.

    Raises:
        ValueError: naming the operators that the NPU lacks.

    Example:
        >>> import onnx, numpy
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
        ...     session = open_session(place / "relu.onnx", Target(soc_model=43, cpu_fallback=False))
        >>> session.run(None, {"x": numpy.float32([[-1, 0, 1, 2]])})[0].tolist()
        [[0.0, 0.0, 1.0, 2.0]]
    """
    try:
        return _session(path, target, options)
    except Exception as error:  # ONNX Runtime's, of which there are many
        missing = [] if target.cpu_fallback else _missing(path, target)
        if not missing:
            raise ValueError(f"Qualcomm's QNN cannot open {path.name}: {_first_line(error)}") from error
        raise ValueError(
            f"Qualcomm's QNN lacks {some_of(missing)}. Change that part of the model, name an inner "
            "module without it, QATCallback(target=...), or let the CPU compute it: {'qnn': {'cpu_fallback': True}}."
        ) from error


def _session(path: Path, target: Target, options: dict[str, str]) -> Any:
    import onnxruntime
    import onnxruntime_qnn

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _FATAL
    if not target.cpu_fallback:
        settings.add_session_config_entry(_NO_CPU, "1")
    # By default the CPU would quantize what goes in and dequantize what comes out.
    own = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "offload_graph_io_quantization": "0"}
    simulated = {"soc_model": str(target.soc_model)} if SIMULATES else {}
    settings.add_provider_for_devices(_devices(), {**own, **simulated, **options})
    return onnxruntime.InferenceSession(str(path), settings)


def _devices() -> list[Any]:
    """Those of the provider, which a process registers once."""
    import onnxruntime
    import onnxruntime_qnn

    name = onnxruntime_qnn.get_ep_name()
    if not any(device.ep_name == name for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(name, onnxruntime_qnn.get_library_path())
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]


def _missing(path: Path, target: Target) -> list[str]:
    """The operators that go to the CPU where they may, with the provider's reason."""
    anywhere = replace(target, cpu_fallback=True)
    with scratch() as place, suppress(Exception):  # what it is that fails, the first error has said
        _session(path, anywhere, {"enable_framework_op_trace": "1", "framework_op_trace_dir": str(place)})
        return cpu_operators(place)
    return []


def cpu_operators(place: Path) -> list[str]:
    """Of a session that was opened with ``enable_framework_op_trace``: what the NPU does not compute, and why.

    Args:
        place: the ``framework_op_trace_dir``.

    Returns:
        name, kind and reason of each.

    Example:
        >>> with scratch() as place:
        ...     node = {"node_name": "top", "op_type": "TopK", "reason": "k is too large. See ..."}
        ...     _ = (place / "qnn_op_trace.json").write_text(json.dumps({"unsupported_nodes": [node]}))
        ...     cpu_operators(place)
        ['top (TopK: k is too large)']
    """
    trace = place / _TRACE
    if not trace.exists():
        return []
    found = json.loads(trace.read_text(encoding="utf-8"))["unsupported_nodes"]
    return [
        f"{node['node_name']} ({node['op_type']}: {node['reason'].partition('.')[0]})"
        for node in found
        if node["op_type"] not in ("QuantizeLinear", "DequantizeLinear")
    ]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
