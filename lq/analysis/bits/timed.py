"""A budget of time: which layers may stay in float, from what each adds and from measuring choices as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import fx, nn

from lq.analysis.bits.budget import Budget
from lq.analysis.bits.costs import Costs, bytes_of_the_rest
from lq.analysis.bits.knapsack import Options, Point, solve
from lq.analysis.bits.latency import LatencyMeter, added_in_float, latency_meter
from lq.analysis.bits.layers import LayerChoices, LayerOption
from lq.config.qconfig import QConfig
from lq.tracing.structure import Inputs

_UNIT = 1e6  # costs are millionths of the float model's latency
_TRIALS, _CLOSE = 6, 0.95
MOST_MEASURED = _TRIALS + 1  # and the network in int8


@dataclass(frozen=True)
class TimedCosts(Costs):
    """What layers in float add to the latency of the network in int8.

    What one layer adds depends on its neighbours, with which it shares the conversions between float and int8. So the
    sum is only an estimate. A choice is therefore measured as a whole, and the limit of the sum is moved until the
    measured latency comes close to the budget.

    Args:
        meter: measures.
        added: what each layer adds in float, as parts of the sum.

    Example:
        >>> from lq.config.specs import WeightSpec
        >>> options = LayerOption(8, WeightSpec(), 8, 16), LayerOption(32, None, 32, 32)
        >>> layers, model, example = [LayerChoices("0", 8, options)], nn.Sequential(nn.Linear(4, 2)), ((), {})
        >>> with latency_meter("torch", model, QConfig(), example, lambda prepared: None) as meter:
        ...     costs = TimedCosts(Budget.parse("latency=0.9@torch"), layers, 8, 40, meter, [1.0], {(0,): 0.6})
        >>> [costs.of(layers[0], option) for option in options]  # int8 takes 0.6 of the float model's time
        [0, 400000]
    """

    meter: LatencyMeter
    added: Sequence[float]
    measured: dict[tuple[int, ...], float] = field(default_factory=dict)

    def of(self, layer: LayerChoices, option: LayerOption) -> int:
        """Millionths of the float model's latency."""
        if option.spec is not None:
            return 0
        return max(round(_UNIT * (1.0 - self._least) * self.added[self.layers.index(layer)]), 1)

    @property
    def _int8(self) -> tuple[int, ...]:
        return (0,) * len(self.layers)

    @property
    def _least(self) -> float:
        return self.share(self._int8)

    @property
    def limit(self) -> float:
        """The budget as a part of the float model's latency."""
        return self.budget.amount if self.budget.relative else self.budget.amount / self.meter.float_ms

    def share(self, picks: Sequence[int]) -> float:
        """What a choice takes over what the float model takes, measured once."""
        chosen = tuple(picks)
        if chosen not in self.measured:
            names = [layer.name for layer, pick in zip(self.layers, picks, strict=True) if pick]
            self.measured[chosen] = 1.0 if len(names) == len(self.layers) else self.meter.share(names)
        return self.measured[chosen]

    def latency_ms(self, picks: Sequence[int], measured: bool) -> float | None:
        """Milliseconds."""
        if measured:
            return self.share(picks) * self.meter.float_ms
        added = sum(self.of(layer, layer.options[pick]) for layer, pick in zip(self.layers, picks, strict=True))
        return (self._least + added / _UNIT) * self.meter.float_ms

    def check(self) -> None:
        """Refuse budgets that leave no choice, and say which do."""
        least, limit = self._least, self.limit
        in_unit = 1.0 if self.budget.relative else self.meter.float_ms
        took = f"all layers in int8 take {least * self.meter.float_ms:.3g} ms here, {least:.3g} of the float model's"
        if limit < least:
            possible = self.budget.written(1.01 * least * in_unit)
            raise ValueError(f"budget {self.budget} is less than int8 takes: {took}. Write at least {possible}.")
        if limit >= 1:
            raise ValueError(
                f"budget {self.budget} is no limit: the float model takes {self.budget.written(in_unit)}; {took}."
            )

    def choose(self, items: Sequence[Options]) -> Point:
        """The choice with the least loss whose measured latency is within the budget."""
        best = solve(items, 0)
        fits, exceeds = (0.0, self._least), None  # the limit of the sum, and what was measured with it
        capacity = self.limit - self._least
        for _ in range(_TRIALS):
            point = solve(items, int(_UNIT * capacity))
            share = self.share(point.picks)
            if share > self.limit:
                exceeds = capacity, share
            else:
                fits = capacity, share
                best = point if point.loss <= best.loss else best
            news = [c for c in self._between(fits, exceeds) if solve(items, int(_UNIT * c)).picks not in self.measured]
            if not news or _CLOSE * self.limit <= share <= self.limit:
                break
            capacity = news[0]
        return best

    def _between(self, fits: tuple[float, float], exceeds: tuple[float, float] | None) -> list[float]:
        """Limits of the sum to try next: by proportion, and the middle."""
        low, share = fits
        left = (1 + _CLOSE) / 2 * self.limit - share
        if exceeds is None:
            return [low + left]
        high, more = exceeds
        return [low + (high - low) * max(left, 0.0) / (more - share), (low + high) / 2]


@contextmanager
def costs_of(
    budget: Budget,
    qconfig: QConfig,
    graph: fx.GraphModule,
    layers: Sequence[LayerChoices],
    in_float: int,
    model: nn.Module,
    example: Inputs,
    calibration: Callable[[nn.Module], None],
) -> Iterator[Costs]:
    """What options cost in the unit of a budget; time is measured within the block.

    Args:
        budget: what limits them.
        qconfig: with all layers in int8, for a budget of time.
        graph: prepared, with ranges.
        layers: of the graph, and their options.
        in_float: bytes of the float model.
        model: in float.
        example: inputs of one call.
        calibration: gives other prepared models their ranges.

    Example:
        >>> import torch
        >>> from lq.config.specs import WeightSpec
        >>> from lq.conversion.graph import as_graph
        >>> from lq.ptq.static import prepare_static
        >>> net, x = nn.Sequential(nn.Linear(4, 2)), torch.eye(4)
        >>> layers = [LayerChoices("0", 8, (LayerOption(8, WeightSpec(), 8, 16),))]
        >>> budget, graph = Budget.parse("effective_bits=4"), as_graph(prepare_static(net, [x]))
        >>> with costs_of(budget, QConfig(), graph, layers, 40, net, ((x,), {}), lambda prepared: None) as costs:
        ...     print(costs.capacity, costs.rest)  # bits of the weights, and bytes of the bias
        32 8
    """
    rest = bytes_of_the_rest(graph)
    if budget.runtime is None:
        yield Costs(budget, layers, rest, in_float)
        return
    with latency_meter(budget.runtime, model, qconfig, example, calibration) as meter:
        yield TimedCosts(budget, layers, rest, in_float, meter, added_in_float(graph, example, layers))
