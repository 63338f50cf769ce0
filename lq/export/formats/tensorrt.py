"""``tensorrt``: a QDQ graph of symmetric int8, which TensorRT builds its engines from.

See https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html. Here ONNX Runtime
runs the file.

Limits: ONNX Runtime computes most of such a file in float, as its ReLUs stay nodes of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import fx

from lq.backends.prepare import state_of
from lq.export.artifact.signature import Signature
from lq.export.formats import onnx as onnx_export
from lq.export.formats.onnx import OPSET, session_model, write
from lq.tracing.structure import Inputs

FILE = "int8.tensorrt.onnx"

check_options = onnx_export.check_options


def _check_symmetric(prepared: fx.GraphModule) -> None:
    """Check that a model fits TensorRT.

    Raises:
        ValueError: if an activation has a zero point or unsigned integers.
    """
    wrong = [spec for spec in state_of(prepared).specs if not (spec.symmetric and spec.quant_min < 0)]
    if wrong:
        raise ValueError(
            f"TensorRT takes symmetric int8 activations with zero point 0, but this model was trained with {wrong[0]}. "
            "Train it with qconfig='tensorrt', or export 'onnx', which takes every grid."
        )


def export(prepared: fx.GraphModule, example: Inputs, directory: Path, opset: int | None = None) -> dict[str, Any]:
    """Write ``int8.tensorrt.onnx``: symmetric int8 everywhere, zero points 0.

    Returns:
        opset and whether the batch is dynamic.

    Raises:
        ValueError: if an activation has a zero point or unsigned integers, or as in :func:`.onnx.write`.

    Example:
        >>> import tempfile
        >>> from torch import nn, rand
        >>> from lq.ptq.static import prepare_static
        >>> x = rand(8, 4)
        >>> prepared = prepare_static(nn.Sequential(nn.Linear(4, 2)), [x], "tensorrt")
        >>> with tempfile.TemporaryDirectory() as place:
        ...     print(export(prepared, ((x,), {}), Path(place)), [file.name for file in Path(place).iterdir()])
        {'opset': 20, 'dynamic_batch': True} ['int8.tensorrt.onnx']
    """
    _check_symmetric(prepared)
    opset = OPSET if opset is None else opset
    return {"opset": opset, "dynamic_batch": write(prepared, example, directory / FILE, opset)}


def load(
    directory: Path, signature: Signature, info: Mapping[str, Any], threads: int | None = None
) -> Callable[..., Any]:
    """``int8.tensorrt.onnx`` in an ONNX Runtime session on the CPU, which computes the same graph.

    Example:
        >>> import onnx, tempfile, torch
        >>> signature = Signature.of(torch.nn.Identity(), ((torch.ones(2),), {}), torch.ones(2))
        >>> code = '<ir_version: 8, opset_import: ["" : 20]> g (float[n] x) => (float[n] y) {y = Abs(x)}'
        >>> with tempfile.TemporaryDirectory() as place:
        ...     onnx.save(onnx.parser.parse_model(code), Path(place, FILE))
        ...     model = load(Path(place), signature, {})
        >>> model(torch.tensor([-1.0, 2.0]))
        tensor([1., 2.])
    """
    return session_model(directory / FILE, signature, threads)


def check_file(directory: Path) -> None:
    """Refuse a file that reads other files, as :func:`lq.export.formats.onnx.check_file` does.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     _ = Path(place, FILE).write_text("no protobuf")
        ...     check_file(Path(place))
        Traceback (most recent call last):
        ValueError: ...int8.tensorrt.onnx is not an ONNX file: ...
    """
    onnx_export.check_file(directory, FILE)
