"""``onnx``: a QDQ graph with int8 weights, as ONNX Runtime takes it; other formats start from such a graph.

Inference sessions find their int8 kernels around QuantizeLinear and DequantizeLinear pairs; see
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.

Limits: ONNX Runtime computes linear layers on more than two dimensions as ``MatMulIntegerToFloat``, an int8 product
whose bias is added in float.
"""

from __future__ import annotations

import copy
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from lq.checks import check_integer
from lq.compat.torch_private import layers_of_any_length, quiet_export
from lq.compat.torchvision_private import any_number_of_results
from lq.export.artifact.flat_model import FlatModel
from lq.export.artifact.scratch import scratch
from lq.export.artifact.signature import Signature
from lq.export.formats.low_bits import lowest_bits
from lq.export.formats.onnx_file import check_model_file, data_file, write_model
from lq.export.formats.onnx_float import keep_float_layers
from lq.export.formats.onnx_graph import align_channels, clip_integers, pack_weights, tidy
from lq.export.formats.onnx_program import rewrite
from lq.export.formats.onnx_rewriter import RefusedCallError, no_translation
from lq.export.formats.output_names import output_names
from lq.export.formats.program import export_program, float_program
from lq.export.formats.shared import is_shared, made_once
from lq.tracing.axes import asked_axes, open_axes
from lq.tracing.origin import line_of_call
from lq.tracing.samples import batch_size
from lq.tracing.structure import Inputs, tensors_of

FILE = "int8.onnx"
OPSET, OPSET_OF_INT4 = 20, 21
OLDEST_OPSET, NEWEST_OPSET = 18, 23

_INT8_KERNELS = ("QLinear", "QGemm", "QAttention", "DynamicQuantize", "MatMulInteger", "ConvInteger")
_FLOAT_LAYERS = ("Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose")


def check_options(opset: int | None = None) -> None:
    """Check the options of the exporters "onnx" and "tensorrt".

    Raises:
        TypeError: if it is no whole number.
        ValueError: if it is too old or unknown.

    Example:
        >>> check_options(opset=20)
        >>> check_options(opset=12)
        Traceback (most recent call last):
        ValueError: opset=12 must be from 18 (the oldest that torch.onnx writes) to 23; ...
    """
    if opset is None:
        return
    check_integer("opset", opset, OPSET)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ValueError(
            f"opset={opset} must be from {OLDEST_OPSET} (the oldest that torch.onnx writes) to {NEWEST_OPSET}; "
            f"leave it out for {OPSET}, and {OPSET_OF_INT4} where weights have four bits or fewer."
        )


def packs(opset: int | None = None) -> bool:
    """Whether weights of four bits and fewer are stored in four with these options.

    Example:
        >>> packs(), packs(opset=20)
        (True, False)
    """
    return opset is None or opset >= OPSET_OF_INT4


def write(
    prepared: fx.GraphModule,
    example: Inputs,
    path: Path,
    opset: int = OPSET,
    *,
    for_onnxruntime: bool = False,
    dynamic: bool = True,
) -> bool:
    """Write a QDQ file.

    Args:
        prepared: in evaluation mode, with ranges.
        example: inputs of one call, on the CPU.
        path: where to.
        opset: version of the ONNX operators.
        for_onnxruntime: whether a first layer gets channels in fours, activations of few bits are clipped as integers,
            layers that were left in float stay so, and weights of four bits are stored as such.
        dynamic: let the batch, or sizes that are none, be any, where the model does.

    Returns:
        whether the file takes any batch, or inputs of any of these sizes.

    Raises:
        ValueError: if the model cannot be exported, or ONNX's checker or shape inference finds fault with the file.

    Example:
        >>> import onnx, tempfile
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.rand(8, 4)
        >>> prepared = prepare_static(nn.Sequential(nn.Linear(4, 2)), [x])
        >>> with tempfile.TemporaryDirectory() as place:
        ...     dynamic = write(prepared, ((x,), {}), Path(place, "net.onnx"))
        ...     nodes = onnx.load(Path(place, "net.onnx")).graph.node
        >>> dynamic, Counter(node.op_type for node in nodes if node.op_type != "Constant")
        (True, Counter({'DequantizeLinear': 3, 'QuantizeLinear': 2, 'Gemm': 1}))
    """
    check_options(opset)
    sizes = tuple(tuple(tensor.shape) for tensor in tensors_of(example))
    key = ("onnx", id(prepared), sizes, opset, dynamic)
    try:
        made, any_batch = made_once(key, lambda: _exported(prepared, example, opset, dynamic))
        if not for_onnxruntime:
            _check_squeezed(made)
    except RefusedCallError as error:
        line = line_of_call(prepared, error.operation, error.number)
        raise ValueError(f"{error}. The call is in {line}" if line else str(error)) from error
    model = copy.deepcopy(made) if is_shared() else made
    tidy(model, output_names(prepared, example), open_axes(prepared, example))
    if for_onnxruntime:
        clip_integers(model)
        align_channels(model)
        keep_float_layers(model)
    if for_onnxruntime and packs(opset):
        pack_weights(model)
    write_model(model, path)
    return any_batch


def _check_squeezed(model: Any) -> None:
    """Refuse what OpenVINO and TensorRT do not compile, and ONNX Runtime does."""
    of_squeeze = "[target=torch.ops.aten.squeeze.default]"
    squeezes = [node for node in model.graph.node if node.op_type == "Squeeze" and len(node.input) == 1]
    if any(of_squeeze in entry.value for node in squeezes for entry in node.metadata_props):
        raise RefusedCallError(
            "squeeze() without a dimension also takes that of a batch of one, which OpenVINO and TensorRT cannot; "
            "write the dimension, such as x.squeeze(1)",
            "squeeze",
            None,
        )


def _exported(prepared: fx.GraphModule, example: Inputs, opset: int, dynamic: bool) -> tuple[Any, bool]:
    try:
        program, any_batch = export_program(prepared, example, dynamic=dynamic)
        return _model_of(program, opset), any_batch
    except Exception:
        if not dynamic or batch_size(example) is not None or asked_axes(prepared):
            raise
        logging.getLogger(__name__).debug("no dynamic sizes", exc_info=True)
    return _exported(prepared, example, opset, dynamic=False)


def write_program(program: ExportedProgram, path: Path) -> None:
    """Write a ``torch.export`` program as it is, quantized or float.

    Example:
        >>> import onnx, tempfile
        >>> program, _ = float_program(nn.Linear(4, 2), ((torch.ones(8, 4),), {}))
        >>> with tempfile.TemporaryDirectory() as place:
        ...     write_program(program, Path(place, "net.onnx"))
        ...     [node.op_type for node in onnx.load(Path(place, "net.onnx")).graph.node]
        ['Gemm']
    """
    write_model(_model_of(program, OPSET), path)


def _model_of(program: ExportedProgram, opset: int) -> Any:
    with quiet_export(), layers_of_any_length(), any_number_of_results():
        program = rewrite(program)
        try:
            made = torch.onnx.export(program, dynamo=True, opset_version=opset, external_data=False, verbose=False)
        except torch.onnx.OnnxExporterError as error:
            raise _innermost(error) from error
    assert made is not None
    return made.model_proto


def _innermost(error: BaseException) -> ValueError:
    """What an error of torch.onnx comes down to: the outer ones say how to report it."""
    said = [str(error)]
    while error.__cause__ is not None:
        error = error.__cause__
        said.append(str(error))
    operation = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", said[-1])
    if operation is not None:
        return RefusedCallError(f"torch.onnx {no_translation(operation[1])}", operation[1].split(".")[1])
    reason = f"torch.onnx failed: {said[-1].partition(chr(10))[0].rstrip('.')}"
    call = re.search(r"Error when translating node .*?\[target=torch\.ops\.aten\.(\w+)", " ".join(said))
    return ValueError(reason) if call is None else RefusedCallError(reason, call[1], None)


def export(prepared: fx.GraphModule, example: Inputs, directory: Path, opset: int | None = None) -> dict[str, Any]:
    """Write ``int8.onnx``; its first layer takes channels in fours (:func:`.onnx_graph.align_channels`).

    Weights of four bits and fewer are stored in four (:func:`.onnx_graph.pack_weights`), unless the opset is
    too old for that.

    Returns:
        opset, whether the batch is dynamic, and what ONNX Runtime makes of the graph on this machine.

    Example:
        >>> import tempfile
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.rand(8, 4)
        >>> prepared = prepare_static(nn.Sequential(nn.Linear(4, 2)), [x])
        >>> with tempfile.TemporaryDirectory() as place:
        ...     info = export(prepared, ((x,), {}), Path(place))
        >>> list(info), info["dynamic_batch"]
        (['opset', 'dynamic_batch', 'int8_layers', 'float_layers', 'quantize_dequantize'], True)
    """
    if opset is None:
        opset = OPSET_OF_INT4 if lowest_bits(prepared) <= 4 else OPSET
    dynamic = write(prepared, example, directory / FILE, opset, for_onnxruntime=True)
    return {"opset": opset, "dynamic_batch": dynamic, **_kernels(directory / FILE)}


def write_float(model: nn.Module, example: Inputs, directory: Path) -> dict[str, Any]:
    """Write a float model in the place of ``int8.onnx``, to compare with.

    Args:
        model: in evaluation mode, on the CPU.
        example: inputs of one call.
        directory: where to.

    Returns:
        what :func:`load` has to know.

    Raises:
        RuntimeError: if it cannot be exported.
        ValueError: if ONNX lacks an operator.

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
    write_program(float_program(model, example)[0], directory / FILE)
    return {}


def load(
    directory: Path, signature: Signature, info: Mapping[str, Any], threads: int | None = None
) -> Callable[..., Any]:
    """``int8.onnx`` in an ONNX Runtime session on the CPU; without ``threads`` it chooses.

    Example:
        >>> import onnx, tempfile
        >>> signature = Signature.of(nn.Identity(), ((torch.ones(2),), {}), {"sizes": torch.ones(2)})
        >>> code = '<ir_version: 8, opset_import: ["" : 20]> g (float[n] x) => (float[n] y) {y = Abs(x)}'
        >>> with tempfile.TemporaryDirectory() as place:
        ...     write_model(onnx.parser.parse_model(code), Path(place, FILE))
        ...     model = load(Path(place), signature, {})
        >>> model(torch.tensor([-1.0, 2.0]))
        {'sizes': tensor([1., 2.])}
    """
    return session_model(directory / FILE, signature, threads)


def check_file(directory: Path, name: str = FILE) -> None:
    """Refuse a file that reads other files than that of its weights; see :func:`.onnx_file.check_model_file`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     _ = Path(place, FILE).write_text("no protobuf")
        ...     check_file(Path(place))
        Traceback (most recent call last):
        ValueError: ...int8.onnx is not an ONNX file: ...
    """
    check_model_file(directory / name)


def session_model(path: Path, signature: Signature, threads: int | None) -> FlatModel:
    """Any ONNX file in an ONNX Runtime session on the CPU, callable as its signature says.

    Example:
        >>> import onnx, tempfile
        >>> signature = Signature.of(nn.Identity(), ((torch.ones(2),), {}), torch.ones(2))
        >>> code = '<ir_version: 8, opset_import: ["" : 20]> g (float[n] x) => (float[n] y) {y = Abs(x)}'
        >>> with tempfile.TemporaryDirectory() as place:
        ...     write_model(onnx.parser.parse_model(code), Path(place, "net.onnx"))
        ...     model = session_model(Path(place, "net.onnx"), signature, threads=1)
        >>> model(torch.tensor([-1.0, 2.0]))
        tensor([1., 2.])
    """
    session = _session(path, threads)
    names = [value.name for value in session.get_inputs()]

    def run(tensors: list[Tensor]) -> list[Tensor]:
        feeds = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return [torch.from_numpy(out) for out in session.run(None, feeds)]

    return FlatModel(run, signature)


def _session(path: Path, threads: int | None = None, optimized: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: it warns of every optimized file that it writes
    if threads is not None:
        options.intra_op_num_threads = threads
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        # Its weights, which nobody reads, in a file of their own: together they may be too large for one.
        setting = "session.optimized_model_external_initializers"
        options.add_session_config_entry(f"{setting}_file_name", data_file(optimized.name))
        options.add_session_config_entry(f"{setting}_min_size_in_bytes", "1024")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _kernels(path: Path) -> dict[str, Any]:
    """Which int8 kernels ONNX Runtime finds, and which layers it leaves in float."""
    import onnx

    with scratch() as place:
        optimized = place / "optimized.onnx"
        _session(path, optimized=optimized)
        nodes = onnx.load(optimized, load_external_data=False).graph.node
    kinds = Counter(node.op_type for node in nodes)
    return {
        "int8_layers": {kind: n for kind, n in kinds.items() if kind.startswith(_INT8_KERNELS)},
        "float_layers": [f"{node.name} ({node.op_type})" for node in nodes if node.op_type in _FLOAT_LAYERS],
        "quantize_dequantize": kinds["QuantizeLinear"] + kinds["DequantizeLinear"],
    }
