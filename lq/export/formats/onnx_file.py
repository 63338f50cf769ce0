"""ONNX files on the disk: one file, or one and its weights in another beside it where they are too many for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lq.export.artifact.files import write_file, write_pieces

# protobuf reads and writes 2 GiB at most; the graph around the weights takes some of it.
LARGEST = 2**31 - 2**26
_SMALL = 1024  # bytes of a tensor that stays in the graph
_ALIGNMENT = 4096  # bytes, so that a runtime can map a tensor into memory


def data_file(name: str) -> str:
    """The name of the file that holds the weights of a file, if that is too large for one.

    Example:
        >>> data_file("int8.onnx")
        'int8.onnx.data'
    """
    return f"{name}.data"


def write_model(model: Any, path: Path) -> None:
    """Write a model, and check the file.

    Args:
        model: an ``onnx.ModelProto``; its weights are taken out of it if they are written to a file of their own.
        path: of the file.

    Raises:
        ValueError: if ONNX's checker or shape inference finds fault with it.
        OSError: if the disk refuses.

    Example:
        >>> import onnx, tempfile
        >>> code = '<ir_version: 8, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) {y = Absolute(x)}'
        >>> with tempfile.TemporaryDirectory() as place:
        ...     write_model(onnx.parser.parse_model(code.replace("Absolute", "Abs")), Path(place, "net.onnx"))
        ...     print(onnx.load(Path(place, "net.onnx")).graph.node[0].op_type)
        ...     write_model(onnx.parser.parse_model(code), Path(place, "net.onnx"))
        Traceback (most recent call last):
        ValueError: the ONNX file is not valid: No Op registered for Absolute ...
    """
    import onnx

    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST:
        weights = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= _SMALL]
        write_pieces(path.with_name(data_file(path.name)), _put_aside(weights, data_file(path.name)))
    write_file(path, model.SerializeToString())
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"the ONNX file is not valid: {error}") from error


def _put_aside(weights: list[Any], location: str) -> Iterator[bytes]:
    """The content of the other file, piece by piece, each taken out of the model."""
    from onnx.external_data_helper import set_external_data

    offset = 0
    for tensor in weights:
        content = tensor.raw_data
        gap = -offset % _ALIGNMENT
        set_external_data(tensor, location, offset=offset + gap, length=len(content))
        tensor.ClearField("raw_data")
        offset += gap + len(content)
        yield bytes(gap)
        yield content


def check_model_file(path: Path) -> None:
    """Refuse a file that reads other files than that of its weights, which lies beside it.

    Raises:
        ValueError: naming the tensor that lies elsewhere.

    Example:
        >>> import onnx, tempfile
        >>> tensor = onnx.TensorProto(name="weight", data_location=onnx.TensorProto.EXTERNAL)
        >>> _ = tensor.external_data.add(key="location", value="../passwords")
        >>> with tempfile.TemporaryDirectory() as place:
        ...     file = Path(place, "int8.onnx")
        ...     _ = file.write_bytes(onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor])).SerializeToString())
        ...     check_model_file(file)
        Traceback (most recent call last):
        ValueError: ...int8.onnx: tensor 'weight' lies in another file (../passwords); lq writes none but ...
    """
    import onnx

    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except Exception as error:  # protobuf's own, of which there are several implementations
        raise ValueError(f"{path} is not an ONNX file: {error}") from error
    beside = data_file(path.name)
    for message in _messages(model):
        if isinstance(message, onnx.TensorProto) and (message.external_data or message.data_location):
            where = [entry.value for entry in message.external_data if entry.key == "location"]
            if where != [beside] or path.with_name(beside).is_symlink():
                raise ValueError(
                    f"{path}: tensor {message.name!r} lies in another file ({', '.join(where) or 'unnamed'}); lq "
                    f"writes none but {beside}. If you trust where the file comes from, give trust=True."
                )


def _messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all that it holds: tensors are in graphs, nodes, functions and what comes next."""
    waiting = [message]
    while waiting:
        current = waiting.pop()
        yield current
        for descriptor, value in current.ListFields():
            if descriptor.message_type is not None:
                waiting += [value] if hasattr(value, "ListFields") else list(value)
