"""``openvino``: an IR made by OpenVINO's own converter from the QDQ graph.

Limits: a residual is added before the convolution's own output is rounded, so outputs differ by steps from those that
were trained, and deep networks with random weights by much more. Which layers run on integers is asked of the compiled
model on this machine.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from lq.backends.prepare import plan_of
from lq.export.artifact.files import write_file
from lq.export.artifact.flat_model import FlatModel
from lq.export.artifact.scratch import scratch
from lq.export.artifact.signature import Signature
from lq.export.formats import onnx as onnx_export
from lq.export.formats.low_bits import fits_in_four_bits, lowest_bits, two_in_a_byte
from lq.export.formats.openvino_graph import compare_exactly, keep_in_float
from lq.tracing.axes import asked_axes
from lq.tracing.samples import batch_size
from lq.tracing.structure import Inputs

FILE, WEIGHTS = "int8.xml", "int8.bin"
_LAYERS = ("Convolution", "FullyConnected", "MatMul", "Deconvolution", "Attention")
_INTEGERS = ("u8", "i8")


def export(prepared: fx.GraphModule, example: Inputs, directory: Path) -> dict[str, Any]:
    """Write ``int8.xml`` and ``int8.bin``.

    Returns:
        whether the batch is dynamic, and in which type each kind of layer runs on this machine.

    Raises:
        ValueError: if the model cannot be exported, or OpenVINO has no conversion of an operation.

    Example:
        >>> import tempfile
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.rand(8, 4)
        >>> prepared = prepare_static(nn.Sequential(nn.Linear(4, 2)), [x])
        >>> with tempfile.TemporaryDirectory() as place:
        ...     info = export(prepared, ((x,), {}), Path(place))
        ...     sorted(file.name for file in Path(place).iterdir())
        ['int8.bin', 'int8.xml']
        >>> list(info)
        ['dynamic_batch', 'int8_layers', 'float_layers']
    """
    import openvino

    with scratch() as place:
        model, dynamic = _converted(prepared, example, place)
        keep_in_float(model)
        compare_exactly(model)
        if lowest_bits(prepared) <= 4:
            _pack_weights(model)
        # Into scratch: its writer says nothing of a disk that is full, and the copy does.
        openvino.save_model(model, place / FILE, compress_to_fp16=False)
        _check_whole(place)
        for name in (FILE, WEIGHTS):
            write_file(directory / name, (place / name).read_bytes())
    planned = {row.name for row in plan_of(prepared).layers}
    precisions = _precisions(_compile(directory / FILE, None), planned)
    return {"dynamic_batch": dynamic, **precisions}


def _converted(prepared: fx.GraphModule, example: Inputs, place: Path, dynamic: bool = True) -> tuple[Any, bool]:
    import openvino

    any_batch = onnx_export.write(prepared, example, place / onnx_export.FILE, dynamic=dynamic)
    try:
        return openvino.convert_model(place / onnx_export.FILE), any_batch
    except openvino.frontend.OpConversionFailure as error:
        if dynamic and batch_size(example) is None and not asked_axes(prepared):
            return _converted(prepared, example, place, dynamic=False)
        raise ValueError(refusal(str(error))) from error


def write_float(model: nn.Module, example: Inputs, directory: Path) -> dict[str, Any]:
    """Write a float model in the place of ``int8.xml`` and ``int8.bin``, as :func:`.onnx.write_float` does.

    Example:
        >>> import tempfile
        >>> net, example = nn.Linear(4, 2), ((torch.ones(1, 4),), {})
        >>> signature = Signature.of(net, example, torch.ones(1, 2))
        >>> with tempfile.TemporaryDirectory() as place:
        ...     model = load(Path(place), signature, write_float(net, example, Path(place)))
        >>> x = torch.rand(3, 4)
        >>> torch.allclose(model(x), net(x), atol=1e-5)
        True
    """
    import openvino

    with scratch() as place:
        onnx_export.write_float(model, example, place)
        openvino.save_model(openvino.convert_model(place / onnx_export.FILE), directory / FILE, compress_to_fp16=False)
    return {}


def refusal(report: str) -> str:
    r"""What OpenVINO's report on a failed conversion comes down to: most of it follows from the first failure.

    Example:
        >>> report = "-- Pad-20 with a message:\nException:\nUnsupported padding mode: [wrap]\n\nSummary:\n"
        >>> refusal(report + "-- Conversion is failed for: Conv-20, Pad-20").partition(";")[0]
        'OpenVINO has no conversion of Pad (Unsupported padding mode: [wrap])'
    """
    lost = "have to be known|has to be known|must be static|is_static"
    missing = re.search(r"No conversion rule found for operations: (.+)", report)
    parts = re.findall(r"-- (\w+?)(?:-\d+)? with a message:\n(.+?)(?=\n\n|\Z)", report, re.DOTALL)
    reasons = [f"{name} ({said.splitlines()[-1]})" for name, said in parts if not re.search(lost, said)]
    what = re.sub(r"-\d+|util::", "", missing[1]) if missing else ", ".join(reasons) or "an operation"
    return (
        f"OpenVINO has no conversion of {what}; these are ONNX's names. Write that part of the model in other torch "
        "functions, or leave 'openvino' out of the exporters"
    )


def _pack_weights(model: Any) -> None:
    """Store weights whose integers fit in four bits as i4, in place.

    OpenVINO 2026.4 computes convolutions with weights that are converted from i4 to float in float. Converted to i8
    first, they run on its int8 kernels.
    """
    from openvino import Shape, Tensor, Type, opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != Type.i8 or len(node.shape) < 2:
            continue
        if not fits_in_four_bits(node.data):
            continue
        packed = Tensor(Type.i4, Shape(node.shape))
        packed.data.view("uint8").reshape(-1)[:] = two_in_a_byte(node.data)
        constant = opset13.constant(packed)
        constant.set_friendly_name(node.get_friendly_name())
        integers = opset13.convert(constant, "i8")
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(integers.output(0))


def _check_whole(place: Path) -> None:
    """Look whether both files are complete.

    Raises:
        OSError: if the disk was too small for them.
    """
    try:
        _compile(place / FILE, None)
    except RuntimeError as error:
        needed = (place / WEIGHTS).stat().st_size if (place / WEIGHTS).exists() else 0
        if shutil.disk_usage(place).free <= max(needed, 2**16):
            raise OSError(errno.ENOSPC, f"cannot write {place / WEIGHTS}: No space left on device") from error
        raise


def load(
    directory: Path, signature: Signature, info: Mapping[str, Any], threads: int | None = None
) -> Callable[..., Any]:
    """The compiled model, callable like the original; without ``threads`` OpenVINO chooses.

    Example:
        >>> import openvino, tempfile
        >>> from openvino import opset13
        >>> x = opset13.parameter([-1], openvino.Type.f32)
        >>> signature = Signature.of(nn.Identity(), ((torch.ones(2),), {}), torch.ones(2))
        >>> with tempfile.TemporaryDirectory() as place:
        ...     openvino.save_model(openvino.Model([opset13.abs(x)], [x]), Path(place, FILE))
        ...     model = load(Path(place), signature, {}, threads=1)
        >>> model(torch.tensor([-1.0, 2.0]))
        tensor([1., 2.])
    """
    return compiled_model(directory / FILE, signature, threads)


def compiled_model(path: Path, signature: Signature, threads: int | None) -> FlatModel:
    """Any model that OpenVINO reads, compiled for the CPU, callable as its signature says.

    Example:
        >>> import onnx, tempfile
        >>> signature = Signature.of(nn.Identity(), ((torch.ones(2),), {}), torch.ones(2))
        >>> code = '<ir_version: 8, opset_import: ["" : 20]> g (float[n] x) => (float[n] y) {y = Abs(x)}'
        >>> with tempfile.TemporaryDirectory() as place:
        ...     onnx.save(onnx.parser.parse_model(code), Path(place, "net.onnx"))
        ...     model = compiled_model(Path(place, "net.onnx"), signature, threads=1)  # it reads ONNX, too
        >>> model(torch.tensor([-1.0, 2.0]))
        tensor([1., 2.])
    """
    compiled = _compile(path, threads)

    def run(tensors: list[Tensor]) -> list[Tensor]:
        # A copy: the arrays are the runtime's own memory, which the next call overwrites.
        return [torch.from_numpy(out.copy()) for out in compiled([t.numpy() for t in tensors]).values()]

    return FlatModel(run, signature, one_call_at_a_time=True)


def _compile(path: Path, threads: int | None) -> Any:
    # On CPUs with bfloat16 OpenVINO would compute what is not int8 in that.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    return _core(os.getpid()).compile_model(path, "CPU", options)


@cache
def _core(process: int) -> Any:
    """One for the whole process, which is never given up.

    On CPUs with AMX every Core of OpenVINO 2026.4 lays a stack of its own under the thread's signal handlers. Two that
    go in the order in which they came leave the handlers on memory that is gone, and the next signal, such as that of
    a DataLoader's worker that ends, kills the process without a word.
    """
    import openvino

    return openvino.Core()


def _kind(info: Any) -> str:
    """Of a node of a compiled model; the two products and the softmax of an attention may be one."""
    kind: str = info["layerType"].value
    holds = info["originalLayersNames"].value.lower() if kind == "Subgraph" else ""
    return "Attention" if "softmax" in holds and ("matmul" in holds or "bmm" in holds) else kind


def _precisions(compiled: Any, planned: Collection[str]) -> dict[str, Any]:
    """How many layers run on integers, and which in float, by their names in the plan where they have one there."""
    int8: Counter[str] = Counter()
    floating = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        kind, precision = _kind(info), info["runtimePrecision"].value
        if kind in _LAYERS:
            if precision in _INTEGERS:
                int8[kind] += 1
            else:
                made_of = info["originalLayersNames"].value.split(",")
                name = next((name for name in made_of if name in planned), node.get_friendly_name())
                floating.append(f"{name} ({kind}, {precision})")
    return {"int8_layers": dict(int8), "float_layers": floating}
