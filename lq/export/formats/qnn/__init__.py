"""``qnn``: a QDQ graph for the NPU of Qualcomm's chips, opened by ONNX Runtime's QNN execution provider as a whole.

See https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html. The NPU compiles one shape, so the file
holds a batch of one. On x86-64 the package ``onnxruntime-qnn`` holds a simulator of the NPU, which is what the parity
gate asks there; ``docs/qualcomm.md`` says what it computes otherwise than it was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from lq.checks import check_flag, check_integer
from lq.conversion.wide import wide_activations
from lq.export.artifact.flat_model import FlatModel
from lq.export.artifact.manifest import MANIFEST_NAME
from lq.export.artifact.signature import Signature
from lq.export.formats import onnx as onnx_export
from lq.export.formats.onnx import OPSET
from lq.export.formats.onnx_file import write_model
from lq.export.formats.parts import call_of_one_part
from lq.export.formats.qnn.clips import quantize_before_clips
from lq.export.formats.qnn.encodings import write_encodings
from lq.export.formats.qnn.mixed import widen_mixed
from lq.export.formats.qnn.report import describe
from lq.export.formats.qnn.session import Target, open_session
from lq.fields import Field
from lq.tracing.samples import batch_size
from lq.tracing.structure import Inputs

FILE = "int8.qnn.onnx"
OPSET_OF_UINT16 = 21
SOC_MODEL = 43  # SM8550, Snapdragon 8 Gen 2: the first with the NPU (v73) whose arithmetic later ones have


def check_options(
    opset: int | None = None, soc_model: int = SOC_MODEL, cpu_fallback: bool = False, encodings: bool = False
) -> None:
    """Check the options of the exporter.

    Raises:
        TypeError: if a flag is none, or a number is not whole.
        ValueError: if a number is out of range.

    Example:
        >>> check_options(soc_model=43, encodings=True)
        >>> check_options(soc_model=0)
        Traceback (most recent call last):
        ValueError: soc_model=0 must be Qualcomm's number of a chip, e.g. 43 (SM8550).
    """
    onnx_export.check_options(opset)
    check_integer("soc_model", soc_model, SOC_MODEL)
    if soc_model < 1:
        raise ValueError(f"soc_model={soc_model} must be Qualcomm's number of a chip, e.g. {SOC_MODEL} (SM8550).")
    check_flag("cpu_fallback", cpu_fallback)
    check_flag("encodings", encodings)


def export(
    prepared: fx.GraphModule,
    example: Inputs,
    directory: Path,
    opset: int | None = None,
    soc_model: int = SOC_MODEL,
    cpu_fallback: bool = False,
    encodings: bool = False,
) -> dict[str, Any]:
    """Write ``int8.qnn.onnx``.

    Args:
        prepared: in evaluation mode, with ranges.
        example: inputs of one call, on the CPU.
        directory: where to.
        opset: version of the ONNX operators; ``None`` is 20, and 21 where activations have 16 bits.
        soc_model: Qualcomm's number of the chip whose NPU the simulator stands in for; the file is the same for all.
        cpu_fallback: let the CPU compute what the NPU cannot, rather than refuse the model.
        encodings: write ``int8.qnn.float.onnx`` and ``int8.qnn.encodings`` for Qualcomm's converters, too.

    Returns:
        that the batch is fixed, its size, and what the NPU computes on integers, what in float, and what not at all.

    Raises:
        ValueError: if the model cannot be exported, or the NPU lacks an operator.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.rand(8, 4)
        >>> prepared = prepare_static(nn.Sequential(nn.Linear(4, 2)), [x], "qnn")
        >>> with tempfile.TemporaryDirectory() as place:
        ...     info = export(prepared, ((x,), {}), Path(place), encodings=True)
        ...     sorted(file.name for file in Path(place).iterdir())
        ['int8.qnn.encodings', 'int8.qnn.float.onnx', 'int8.qnn.onnx']
        >>> info["largest_batch"], info["int8_layers"], info["cpu_operators"]
        (1, {'FullyConnected': 1}, [])
    """
    check_options(opset, soc_model, cpu_fallback, encodings)
    opset = _opset_for(prepared, opset)
    sample = call_of_one_part(prepared, example)
    path = directory / FILE
    onnx_export.write(prepared, sample, path, opset, dynamic=False)
    if encodings:
        write_encodings(path)
    _fit_to_the_npu(path, bool(wide_activations(prepared)))
    return {
        "opset": opset,
        "dynamic_batch": False,
        "largest_batch": batch_size(sample),
        "soc_model": soc_model,
        "cpu_fallback": cpu_fallback,
        "encodings": encodings,
        **describe(path, Target(soc_model, cpu_fallback)),
    }


def _fit_to_the_npu(path: Path, wide: bool) -> None:
    import onnx

    model = onnx.load(path)
    changes = [quantize_before_clips(model), wide and widen_mixed(model)]
    if any(changes):
        write_model(model, path)


def _opset_for(prepared: fx.GraphModule, opset: int | None) -> int:
    """The one that is asked for, or the least that holds the activations."""
    least = OPSET_OF_UINT16 if wide_activations(prepared) else OPSET
    if opset is not None and opset < least == OPSET_OF_UINT16:
        raise ValueError(f"opset={opset} has no activations of 16 bits; leave it out for {OPSET_OF_UINT16}.")
    return least if opset is None else opset


def load(
    directory: Path, signature: Signature, info: Mapping[str, Any], threads: int | None = None
) -> Callable[..., Any]:
    """``int8.qnn.onnx`` on the NPU, or on the simulator of it, which have no threads to choose.

    Example:
        >>> import onnx, tempfile
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 20]>
        ... g (float[1,2] x) => (float[1,2] y) <float s = {0.5}, uint8 z = {3}> {
        ...     q = QuantizeLinear(x, s, z)
        ...     dq = DequantizeLinear(q, s, z)
        ...     r = Relu(dq)
        ...     qr = QuantizeLinear(r, s, z)
        ...     y = DequantizeLinear(qr, s, z)
        ... }''')
        >>> signature = Signature.of(torch.nn.Identity(), ((torch.ones(1, 2),), {}), torch.ones(1, 2))
        >>> with tempfile.TemporaryDirectory() as place:
        ...     onnx.save(model, Path(place, FILE))
        ...     relu = load(Path(place), signature, {"soc_model": 43, "cpu_fallback": False, "largest_batch": 1})
        >>> relu(torch.tensor([[-1.0, 2.0], [3.0, -4.0]]))  # a batch of two, one by one
        tensor([[0., 2.],
                [3., 0.]])
    """
    given = Field(info, f"{directory / MANIFEST_NAME}: artifacts.qnn")
    largest = given["largest_batch"]
    session = open_session(directory / FILE, Target(given["soc_model"].integer(1), given["cpu_fallback"].flag()))
    names = [value.name for value in session.get_inputs()]

    def run(tensors: list[Tensor]) -> list[Tensor]:
        feeds = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return [torch.from_numpy(out) for out in session.run(None, feeds)]

    return FlatModel(run, signature, at_once=None if largest.value is None else largest.integer(1))


def check_file(directory: Path) -> None:
    """Refuse a file that reads other files, as :func:`lq.export.formats.onnx.check_file` does.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     _ = Path(place, FILE).write_text("no protobuf")
        ...     check_file(Path(place))
        Traceback (most recent call last):
        ValueError: ...int8.qnn.onnx is not an ONNX file: ...
    """
    onnx_export.check_file(directory, FILE)
