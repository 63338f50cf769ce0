"""Quantizers of the tests' own, named by their dotted paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torchao.quantization.pt2e import FakeQuantize, MovingAverageMinMaxObserver
from torchao.quantization.pt2e.quantizer import (
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
)

OBSERVED = FakeQuantize.with_args(observer=MovingAverageMinMaxObserver)


class OnlyLinear(Quantizer):
    """Inputs, weights and outputs of linear layers.

    Args:
        activation: fields of the spec of activations other than the default.
        weight: the same of weights.
        fixed: whether the scale of activations is fixed.
    """

    def __init__(
        self, activation: dict[str, Any] | None = None, weight: dict[str, Any] | None = None, fixed: bool = False
    ) -> None:
        def spec(**fields: Any) -> QuantizationSpec:
            return QuantizationSpec(**{"observer_or_fake_quant_ctr": OBSERVED, **fields})

        symmetric = torch.per_tensor_symmetric
        self.activation: Any = spec(
            **{"dtype": torch.uint8, "quant_min": 0, "quant_max": 255, "qscheme": torch.per_tensor_affine}
            | (activation or {})
        )
        self.weight = spec(
            **{"dtype": torch.int8, "quant_min": -8, "quant_max": 7, "qscheme": symmetric} | (weight or {})
        )
        if fixed:
            self.activation = FixedQParamsQuantizationSpec(torch.uint8, 1 / 256, 0, 0, 255, torch.per_tensor_affine)
        self.annotates: Callable[[fx.Node], bool] = lambda node: node.target == torch.ops.aten.linear.default

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        for node in model.graph.nodes:
            if self.annotates(node):
                inputs = {node.args[0]: self.activation, node.args[1]: self.weight}
                node.meta["quantization_annotation"] = QuantizationAnnotation(inputs, self.activation, _annotated=True)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        pass


class Results(OnlyLinear):
    """Weights and results of layers, and the results of ReLUs, even between a convolution and its BatchNorm."""

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        aten = torch.ops.aten
        for node in model.graph.nodes:
            if node.target in (aten.linear.default, aten.conv2d.default, aten.relu.default):
                weights = {node.args[1]: self.weight} if len(node.args) > 1 else {}
                node.meta["quantization_annotation"] = QuantizationAnnotation(weights, self.activation, _annotated=True)
        return model


class TakesApart(OnlyLinear):
    """Puts operations of its own in front of a tanh, and rounds what they compute."""

    def transform_for_annotation(self, model: fx.GraphModule) -> fx.GraphModule:
        for node in list(model.graph.nodes):
            if node.target is torch.ops.aten.tanh.default:
                with model.graph.inserting_before(node):
                    inside = [
                        model.graph.call_function(torch.ops.aten.mul.Tensor, (node.args[0], 2)),
                        model.graph.call_function(torch.ops.aten.sigmoid.default, ()),
                    ]
                    inside[1].args = (inside[0],)
                for new in inside:
                    new.meta["val"] = node.meta["val"]
                node.args = (inside[1],)
        return model

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        for node in super().annotate(model).graph.nodes:
            if node.target in (torch.ops.aten.mul.Tensor, torch.ops.aten.sigmoid.default):
                node.meta["quantization_annotation"] = QuantizationAnnotation({}, self.activation, _annotated=True)
        return model


def weights_only() -> OnlyLinear:
    """No activation."""
    quantizer = OnlyLinear()
    quantizer.activation = None
    return quantizer


def only_linear_of(part: str) -> OnlyLinear:
    """Only linear layers inside one module, which it finds as torchao's quantizers do."""
    quantizer = OnlyLinear()

    def inside(node: fx.Node) -> bool:
        paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        return node.target == torch.ops.aten.linear.default and f"L['self'].{part}" in paths

    quantizer.annotates = inside
    return quantizer


def no_quantizer() -> object:
    """Nothing that annotates."""
    return object()


def x86_inductor_with_exact_weights() -> Any:
    """X86InductorQuantizer, but the fake quantizer of weights computes its scale as its observer does."""
    from torchao.quantization.pt2e import MovingAveragePerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    config = get_default_x86_inductor_quantization_config(is_qat=True)
    observer = FakeQuantize.with_args(observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0)
    weight = replace(config.weight, quant_min=-127, observer_or_fake_quant_ctr=observer)
    return X86InductorQuantizer().set_global(replace(config, weight=weight))
