"""The bytes of a ``.tflite`` file.

Source:
    The schema of the format, ``ai_edge_litert.schema_py_generated``, a flatbuffer: tables point to what they hold, so
    that two may share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lq.export.formats.litert.file import File, FileOperator, FileTensor, LiteRTGrid

_TYPES = {
    "float32": "FLOAT32", "uint8": "UINT8", "int8": "INT8", "int4": "INT4", "int16": "INT16", "int32": "INT32",
    "int64": "INT64", "bool": "BOOL",
}  # fmt: skip
_ALIGNMENT = 16  # bytes, as the schema demands of buffers


def packed(file: File, inputs: Mapping[str, int], outputs: Mapping[str, int], about: str) -> bytes:
    """The bytes of a file.

    Args:
        file: its tensors and operators.
        inputs: of the model: their names in its signature, and their indices.
        outputs: likewise.
        about: a line that says what it is.

    Example:
        >>> from ai_edge_litert.interpreter import Interpreter
        >>> from lq.export.formats.litert.file import Size
        >>> file = File()
        >>> x, y = (file.tensor(FileTensor(name, (Size(2),))) for name in "xy")
        >>> file.operator("EXP", [x], [y])
        >>> content = packed(file, {"given": x}, {"made": y}, "an exponential")
        >>> content[4:8], Interpreter(model_content=content).get_signature_list()
        (b'TFL3', {'serving_default': {'inputs': ['given'], 'outputs': ['made']}})
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT()
    model.version, model.description = 3, about
    codes = sorted({(operator.kind, operator.version) for operator in file.operators})
    model.operatorCodes = [_code(schema, *code) for code in codes]
    model.buffers = [_Buffer(b"")]
    graph = schema.SubGraphT()
    graph.name = "main"
    graph.inputs, graph.outputs = list(inputs.values()), list(outputs.values())
    written: dict[Any, Any] = {}
    graph.tensors = [_tensor(schema, tensor, model.buffers, written) for tensor in file.tensors]
    graph.operators = [_operator(schema, o, codes.index((o.kind, o.version))) for o in file.operators]
    model.subgraphs = [graph]
    model.signatureDefs = [_signature(schema, inputs, outputs)]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@dataclass(frozen=True)
class _Quantization:
    """The grid of a tensor; what equal ones of a file consist of is written once.

    The format has a zero point of eight bytes for each channel of a weight and of its bias, all of them 0.
    """

    grid: LiteRTGrid
    written: dict[Any, Any]

    def Pack(self, builder: Any) -> Any:  # noqa: N802 - the schema's objects call it so
        if self.grid not in self.written:
            self.written[self.grid] = self._table(builder)
        return self.written[self.grid]

    def _table(self, builder: Any) -> Any:
        from ai_edge_litert import schema_py_generated as schema

        scales = self._vector(builder, np.array(self.grid.scales, np.float32))
        zero_points = self._vector(builder, np.full(len(self.grid.scales), self.grid.zero_point, np.int64))
        schema.QuantizationParametersStart(builder)
        schema.QuantizationParametersAddScale(builder, scales)
        schema.QuantizationParametersAddZeroPoint(builder, zero_points)
        schema.QuantizationParametersAddQuantizedDimension(builder, self.grid.axis)
        return schema.QuantizationParametersEnd(builder)

    def _vector(self, builder: Any, values: Any) -> Any:
        key = (values.dtype.name, values.tobytes())
        if key not in self.written:
            self.written[key] = builder.CreateNumpyVector(values)
        return self.written[key]


@dataclass(frozen=True)
class _Buffer:
    """Content of a tensor, aligned as the schema wants it and Python's flatbuffers do not by themselves."""

    data: bytes

    def Pack(self, builder: Any) -> Any:  # noqa: N802 - the schema's objects call it so
        from ai_edge_litert import schema_py_generated as schema

        vector = None
        if self.data:
            builder.Prep(_ALIGNMENT, len(self.data))
            vector = builder.CreateByteVector(self.data)
        schema.BufferStart(builder)
        if vector is not None:
            schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


def _code(schema: Any, kind: str, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, kind)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)  # what readers from before 2020 look at
    code.version = version
    return code


def _tensor(schema: Any, tensor: FileTensor, buffers: list[_Buffer], written: dict[Any, Any]) -> Any:
    made = schema.TensorT()
    made.name, made.shape = tensor.name, [size.length for size in tensor.shape]
    made.type = getattr(schema.TensorType, _TYPES[tensor.dtype])
    made.buffer = 0
    if any(size.changes for size in tensor.shape):
        made.shapeSignature = [-1 if size.changes else size.length for size in tensor.shape]
    if tensor.content is not None:
        made.buffer = len(buffers)
        buffers.append(_Buffer(np.ascontiguousarray(tensor.content).tobytes()))
    if tensor.grid is not None:
        made.quantization = _Quantization(tensor.grid, written)
    return made


def _operator(schema: Any, operator: FileOperator, code: int) -> Any:
    made = schema.OperatorT()
    made.opcodeIndex, made.inputs, made.outputs = code, list(operator.inputs), list(operator.outputs)
    if operator.options:
        made.builtinOptionsType = getattr(schema.BuiltinOptions, operator.options)
        made.builtinOptions = getattr(schema, f"{operator.options}T")()
        for name, value in operator.settings.items():
            assert hasattr(made.builtinOptions, name), f"{operator.options} has no {name}"
            setattr(made.builtinOptions, name, value)
    return made


def _signature(schema: Any, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
    made = schema.SignatureDefT()
    made.signatureKey = "serving_default"
    made.inputs, made.outputs = ([_named(schema, *item) for item in named.items()] for named in (inputs, outputs))
    return made


def _named(schema: Any, name: str, index: int) -> Any:
    made = schema.TensorMapT()
    made.name, made.tensorIndex = name, index
    return made
