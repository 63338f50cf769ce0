"""What a choice of bits costs, in the unit of the budget and in bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from lq.analysis.bits.activations import ActivationChoices
from lq.analysis.bits.budget import EFFECTIVE_BITS, Budget
from lq.analysis.bits.knapsack import Options, Point, solve
from lq.analysis.bits.layers import FLOAT, LayerChoices, LayerOption
from lq.conversion.reference import ReferenceLayer, reference
from lq.messages import some_of


@dataclass(frozen=True)
class Costs:
    """What options cost in the unit of a budget, and what is known of the whole.

    Args:
        budget: what limits them.
        layers: and their options.
        rest: bytes of the deployed model besides them.
        in_float: bytes of the float model.

    Example:
        >>> from lq.config.specs import WeightSpec
        >>> options = LayerOption(4, WeightSpec(-7, 7), 4, 54), LayerOption(8, WeightSpec(-127, 127), 8, 104)
        >>> costs = Costs(Budget.parse("size=150B"), [LayerChoices("fc", 100, options)], rest=40, in_float=440)
        >>> costs.capacity, costs.size([1])
        (110, 144)
        >>> costs.choose([[(54, 0.3), (104, 0.1)]])
        Point(cost=104, loss=0.1, picks=(1,))
    """

    budget: Budget
    layers: Sequence[LayerChoices]
    rest: int
    in_float: int

    def of(self, layer: LayerChoices, option: LayerOption) -> int:
        """Bits of weights, or bytes of the file."""
        return layer.weights * option.stored if self.budget.kind == EFFECTIVE_BITS else option.bytes

    @property
    def weights(self) -> int:
        """How many the layers have."""
        return sum(layer.weights for layer in self.layers)

    @property
    def capacity(self) -> int:
        """What is left for the layers."""
        if self.budget.kind == EFFECTIVE_BITS:
            return math.floor(self.budget.amount * self.weights + 1e-6)
        return math.floor(self.budget.amount + 1e-6) - self.rest  # 0.3 MB are 299999.99999999994 bytes

    def size(self, picks: Sequence[int]) -> int:
        """Bytes of the deployed model."""
        return self.rest + sum(layer.options[pick].bytes for layer, pick in zip(self.layers, picks, strict=True))

    def effective_bits(self, picks: Sequence[int]) -> float:
        """Stored bits of a weight, in the mean."""
        stored = sum(layer.weights * layer.options[p].stored for layer, p in zip(self.layers, picks, strict=True))
        return stored / self.weights

    def latency_ms(self, picks: Sequence[int], measured: bool) -> float | None:
        """Milliseconds of a call, expected or measured; ``None`` if they are no matter."""
        return None

    def choose(self, items: Sequence[Options]) -> Point:
        """The choice with the least loss that the budget allows."""
        return solve(items, self.capacity)

    def check(self) -> None:
        """Refuse budgets that leave no choice, and say which do."""
        every = [[self.of(layer, option) for option in layer.options] for layer in self.layers]
        least, most = sum(map(min, every)), sum(map(max, every))
        possible = f"it can be from {self._at_least(least)} to {self._at_least(most)}"
        if self.capacity < least:
            raise ValueError(f"budget {self.budget} is less than the widths allow: {possible}. {self._remedy()}")
        whole = FLOAT if self.budget.kind == EFFECTIVE_BITS else self.in_float
        if self.budget.amount >= whole:
            raise ValueError(
                f"budget {self.budget} is no limit: the float model has {self.budget.written(whole)}; {possible}."
            )

    def _remedy(self) -> str:
        fixed = [layer.name for layer in self.layers if len(layer.options) == 1]
        if not fixed:
            return "Or allow fewer bits."
        return (
            f"There is one choice for {some_of(fixed)}: first and last layers keep the bits of the preset, unless "
            "qconfig has keep: nothing; layers with an override keep those; and files store the bits that their "
            "format has."
        )

    def _at_least(self, cost: int) -> str:
        """A budget with few digits that allows this."""
        if self.budget.kind == EFFECTIVE_BITS:
            return self.budget.written(-(-1000 * cost // self.weights) / 1000)
        bytes_ = cost + self.rest
        step = 10 ** max(len(str(bytes_)) - 4, 0)
        return self.budget.written(-(-bytes_ // step) * step)


def activation_capacity(tensors: Sequence[ActivationChoices], bits: float) -> int:
    """Bits that all values of the activations may have together.

    Args:
        tensors: the activations and their options.
        bits: of a value in the mean.

    Raises:
        ValueError: if even the fewest bits of each are more.

    Example:
        >>> from lq.analysis.bits.activations import ActivationOption
        >>> from lq.config.specs import ActivationSpec
        >>> grids = [ActivationOption(2, ActivationSpec(0, 3)), ActivationOption(8, ActivationSpec())]
        >>> activation_capacity([ActivationChoices("conv", 100, tuple(grids))], 4.5)
        450
    """
    values = sum(tensor.values for tensor in tensors)
    least = sum(tensor.values * min(option.spec.bits for option in tensor.options) for tensor in tensors)
    if least > bits * values:
        fixed = [tensor.name for tensor in tensors if len(tensor.options) == 1]
        raise ValueError(
            f"auto_bits: activation_bits={bits} is less than the widths allow: the mean can be from "
            f"{math.ceil(1000 * least / values) / 1000}. There is one choice for {some_of(fixed)}: inputs and outputs "
            "of the first and last layers keep the bits of the preset, unless qconfig has keep: nothing, and so do "
            "activations with an override."
        )
    return math.floor(bits * values + 1e-6)


def bytes_of_the_rest(graph: fx.GraphModule) -> int:
    """What the deployed model holds besides quantized weights and their scales: biases, and what stays in float.

    Args:
        graph: a prepared graph with ranges.

    Example:
        >>> import torch
        >>> from lq.conversion.graph import as_graph
        >>> from lq.ptq.static import prepare_static
        >>> graph = as_graph(prepare_static(nn.Sequential(nn.Linear(4, 2)), [torch.eye(4)]))
        >>> bytes_of_the_rest(graph)  # a bias of two values
        8
    """
    deployed = reference(graph)
    apart = {
        id(tensor)
        for layer in deployed.modules()
        if isinstance(layer, ReferenceLayer)
        for tensor in (layer.weight, layer.weight_scale, layer.weight_zero_point)
    }
    tensors = {id(t): t for t in (*deployed.parameters(), *deployed.buffers()) if id(t) not in apart}
    return sum(tensor.nbytes for tensor in tensors.values())


def float_bytes(model: nn.Module) -> int:
    """Parameters and buffers of the float model.

    Example:
        >>> float_bytes(nn.Linear(4, 2))
        40
    """
    tensors: dict[int, Tensor] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())
