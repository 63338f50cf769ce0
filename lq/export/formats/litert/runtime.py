"""LiteRT's interpreter as a callable on tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lq.export.artifact.flat_model import FlatModel
from lq.export.artifact.signature import Signature
from lq.export.formats.litert.file import Array
from lq.export.formats.litert.orders import CHANNELS_LAST

Shapes: TypeAlias = tuple[tuple[int, ...], ...]

_IMAGE = 4
_MOST_OPENED = 4  # each holds buffers of its own


def interpreted(
    path: Path,
    signature: Signature,
    threads: int | None,
    *,
    xnnpack: bool = True,
    channels_last: bool = False,
    largest_batch: int | None = None,
) -> FlatModel:
    """A ``.tflite`` file in LiteRT's interpreter, callable as its signature says.

    Args:
        path: the file.
        signature: of the original model.
        threads: ``None`` lets LiteRT choose.
        xnnpack: let XNNPACK compute what it can; else LiteRT's own kernels do.
        channels_last: whether images of the file have their channels last.
        largest_batch: what the file takes at once; ``None`` is any.

    Example:
        >>> import tempfile
        >>> from lq.export.formats.litert import write_float
        >>> net, x = torch.nn.Softmax(-1), torch.zeros(2, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "softmax.tflite"
        ...     largest = write_float(net, ((x,), {}), path)
        ...     model = interpreted(path, Signature.of(net, ((x,), {}), net(x)), threads=1, largest_batch=largest)
        >>> model(input=torch.ones(3, 4))
        tensor([[0.2500, 0.2500, 0.2500, 0.2500],
                [0.2500, 0.2500, 0.2500, 0.2500],
                [0.2500, 0.2500, 0.2500, 0.2500]])
    """
    run = _Interpreter(path, threads, xnnpack, channels_last)
    return FlatModel(run, signature, at_once=largest_batch, one_call_at_a_time=True)


class _Interpreter:
    def __init__(self, path: Path, threads: int | None, xnnpack: bool, channels_last: bool) -> None:
        self.path, self.content, self.threads, self.xnnpack = path, path.read_bytes(), threads, xnnpack
        self.channels_last = channels_last
        first = self._opened()
        self.inputs = first.get_input_details()
        shapes = tuple(tuple(details["shape"].tolist()) for details in self.inputs)
        self.opened: dict[Shapes, Any] = {shapes: first}  # the one that was used last is the last

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        arrays = [entering(t, details, self.channels_last) for t, details in zip(tensors, self.inputs, strict=True)]
        interpreter = self._for(tuple(values.shape for values in arrays))
        for details, values in zip(self.inputs, arrays, strict=True):
            interpreter.set_tensor(details["index"], values)
        interpreter.invoke()
        outputs = interpreter.get_output_details()
        return [leaving(interpreter.get_tensor(d["index"]), d, self.channels_last) for d in outputs]

    def _for(self, shapes: Shapes) -> Any:
        """The interpreter for inputs of these shapes, one of the last few or a new one."""
        found = self.opened.pop(shapes, None) or self._opened(shapes)
        self.opened[shapes] = found
        if len(self.opened) > _MOST_OPENED:
            del self.opened[next(iter(self.opened))]
        return found

    def _opened(self, shapes: Shapes = ()) -> Any:
        """An interpreter for inputs of these shapes; without any they are those of the file.

        Each has one of its own: XNNPACK may keep a buffer of the size that it has allocated first.
        """
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        resolver = OpResolverType.AUTO if self.xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        settings = {"num_threads": self.threads, "experimental_op_resolver_type": resolver}
        try:
            made = Interpreter(model_content=self.content, **settings)
        except ValueError as error:
            raise ValueError(f"{self.path} cannot be loaded by LiteRT: {error}") from error
        for details, shape in zip(made.get_input_details(), shapes, strict=False):
            made.resize_tensor_input(details["index"], shape, strict=True)
        made.allocate_tensors()
        return made


def entering(tensor: Tensor, details: Mapping[str, Any], channels_last: bool) -> Array:
    """An input as a file takes it.

    Args:
        tensor: as torch has it.
        details: what the interpreter says of the input.
        channels_last: whether the file takes images with their channels last.

    Example:
        >>> grid = {"scales": np.float32([0.5]), "zero_points": np.int32([-1])}
        >>> details = {"dtype": np.int8, "quantization_parameters": grid}
        >>> entering(torch.tensor([0.0, 1.0, 99.0]), details, channels_last=False)
        array([ -1,   1, 127], dtype=int8)
    """
    values: Array = tensor.numpy()
    if channels_last and values.ndim == _IMAGE:
        values = values.transpose(CHANNELS_LAST[_IMAGE])
    if _is_on_grid(details) and values.dtype != np.int8:
        scale, zero_point = _grid(details)
        values = np.clip(np.round(values / scale) + zero_point, -128, 127).astype(np.int8)
    return np.ascontiguousarray(values)


def leaving(values: Array, details: Mapping[str, Any], channels_last: bool) -> Tensor:
    """An output as torch has it; arguments as for :func:`entering`.

    Example:
        >>> grid = {"scales": np.float32([0.5]), "zero_points": np.int32([-1])}
        >>> details = {"dtype": np.int8, "quantization_parameters": grid}
        >>> leaving(np.int8([-1, 1, 127]), details, channels_last=False)
        tensor([ 0.,  1., 64.])
    """
    values = np.asarray(values)  # of no dimensions it is a number
    if _is_on_grid(details):
        scale, zero_point = _grid(details)
        values = (values.astype(np.float32) - zero_point) * scale
    if channels_last and values.ndim == _IMAGE:
        values = np.ascontiguousarray(values.transpose(np.argsort(CHANNELS_LAST[_IMAGE])))
    return torch.from_numpy(values)


def _is_on_grid(details: Mapping[str, Any]) -> bool:
    """Whether int8 values stand for others, and are not the values themselves."""
    return details["dtype"] is np.int8 and len(details["quantization_parameters"]["scales"]) > 0


def _grid(details: Mapping[str, Any]) -> tuple[Any, int]:
    grid = details["quantization_parameters"]
    return np.float32(grid["scales"][0]), int(grid["zero_points"][0])
