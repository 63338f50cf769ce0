"""A float ONNX file and its encodings, computed node by node in ONNX Runtime with fake quantization in numpy.

It reads AIMET's layout on its own, as a converter does: the axis of channels follows from the layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

Arrays = dict[str, Any]


class Applied:
    """A pair of files.

    Args:
        model: the float ONNX file.
        encodings: the JSON file.
    """

    def __init__(self, model: Path, encodings: Path) -> None:
        self.model = onnx.load(model)
        content = json.loads(encodings.read_text())
        assert content["version"] == "1.0.0"
        self.activations = {entry["name"]: entry for entry in content["activation_encodings"]}
        self.parameters = {entry["name"]: entry for entry in content["param_encodings"]}
        self.constants = {t.name: onnx.numpy_helper.to_array(t) for t in self.model.graph.initializer}

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        """The outputs, in order."""
        values: Arrays = {**self.constants, **feeds}
        values = {name: self.quantized(name, value) for name, value in values.items()}
        for node in self.model.graph.node:
            given = {name: values[name] for name in node.input if name}
            for name, value in zip(node.output, self._computed(node, given), strict=True):
                values[name] = self.quantized(name, value)
        return [values[output.name] for output in self.model.graph.output]

    def quantized(self, name: str, value: Any) -> Any:
        """A tensor on the grid that is named for it, if any."""
        entry = self.activations.get(name) or self.parameters.get(name)
        if entry is None:
            return value
        shape = [1] * value.ndim
        if entry["enc_type"] == "PER_CHANNEL":
            shape[self._axis(name)] = -1
        kind = np.float64 if entry["bw"] > 16 else np.float32
        scale, offset = (np.array(entry[key], kind).reshape(shape) for key in ("scale", "offset"))
        integers = np.clip(np.rint(value / scale) - offset, 0, 2 ** entry["bw"] - 1)
        return ((integers + offset) * scale).astype(np.float32)

    def _axis(self, name: str) -> int:
        if self.constants[name].ndim == 1:
            return 0
        layer = next(node for node in self.model.graph.node if len(node.input) > 1 and node.input[1] == name)
        transposed = any(attribute.name == "transB" and attribute.i for attribute in layer.attribute)
        return {"Conv": 0, "ConvTranspose": 1, "MatMul": -1, "Gemm": 0 if transposed else 1}[layer.op_type]

    def _computed(self, node: Any, given: Arrays) -> list[Any]:
        kinds = {name: onnx.helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in given.items()}
        inputs = [onnx.helper.make_tensor_value_info(name, kinds[name], given[name].shape) for name in given]
        outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output]
        graph = onnx.helper.make_graph([node], "one", inputs, outputs)
        alone = onnx.helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        return session(alone.SerializeToString()).run(None, given)


def session(model: bytes | str, optimized: bool = False) -> Any:
    """On the CPU; unless it is optimized, ONNX Runtime computes quantized layers in float between their pairs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
