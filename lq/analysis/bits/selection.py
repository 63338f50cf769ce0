"""Which options are taken: the losses of all, each measured once, the best choice, and the frontier beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lq.analysis.bits.activations import ActivationChoices, ActivationOption
from lq.analysis.bits.choice import ActivationBits, ActivationRow, BitChoice, FrontierRow
from lq.analysis.bits.costs import Costs, activation_capacity
from lq.analysis.bits.knapsack import Options, frontier, solve
from lq.analysis.bits.layers import FLOAT, LayerChoices, LayerOption
from lq.analysis.bits.losses import RoundingLoss
from lq.analysis.resume import ResultFile
from lq.config.specs import WeightSpec


@dataclass(frozen=True)
class WeightSelection:
    """Bits for the weights under a budget.

    Args:
        layers: and their options.
        costs: of the options, and the budget.
        loss: measures.
        file: losses that are known.
        widths: for the rows of uniform bits.

    Example:
        >>> import torch
        >>> from lq.analysis.bits.budget import Budget
        >>> from lq.backends.prepare import prepare
        >>> from lq.conversion.graph import as_graph
        >>> from lq.ptq.batches import run_batch
        >>> graph = as_graph(prepare(torch.nn.Sequential(torch.nn.Linear(4, 8)), example_args=(torch.eye(4),)))
        >>> loss = RoundingLoss(graph, [torch.eye(4)], run_batch, lambda batch: None, lambda: None)
        >>> options = LayerOption(4, WeightSpec(-7, 7), 4, 48), LayerOption(8, WeightSpec(-127, 127), 8, 64)
        >>> layers = [LayerChoices("0", 32, options)]
        >>> costs = Costs(Budget.parse("effective_bits=5"), layers, rest=32, in_float=160)
        >>> found = WeightSelection(layers, costs, loss, ResultFile(None, {}), (4, 8)).found()
        >>> found.layers["0"].width, [row["name"] for row in found.rows if row["name"]]
        (4, ['all 4 bits', 'chosen', 'all 8 bits'])
    """

    layers: Sequence[LayerChoices]
    costs: Costs
    loss: RoundingLoss
    file: ResultFile
    widths: Sequence[int]

    def found(self) -> BitChoice:
        """The choice, measured, and what others would lose."""
        items = [self._options(layer) for layer in self.layers]
        chosen = self.costs.choose(items)
        rows = [self._row("", point.picks, items) for point in _some(frontier(items))]
        for width in self.widths:
            picks = [_at(layer.options, width) for layer in self.layers]
            name = "all float" if width == FLOAT else f"all {width} bits"
            rows.append(self._row(name, picks, items, measured=True))
        rows.append(self._row("chosen", chosen.picks, items, measured=True))
        rows.sort(key=lambda row: (row["latency_ms"] or row["size_mb"], -row["expected"]))
        options = {layer.name: layer.options[p] for layer, p in zip(self.layers, chosen.picks, strict=True)}
        return BitChoice(self.costs.budget, self.loss.name, options, rows)

    def _options(self, layer: LayerChoices) -> Options:
        return [(self.costs.of(layer, option), self._loss_of(layer.name, option)) for option in layer.options]

    def _loss_of(self, layer: str, option: LayerOption) -> float:
        if option.spec is None:
            return 0.0
        name = f"{layer}: {option.label}{' and activations' * self.loss.kernels}"
        if name not in self.file.results:
            self.file.add(name, self.loss.of({layer: option.spec}))
        return self.file.results[name]

    def _row(self, name: str, picks: Sequence[int], items: Sequence[Options], measured: bool = False) -> FrontierRow:
        taken = {layer.name: layer.options[pick] for layer, pick in zip(self.layers, picks, strict=True)}
        grids = {layer: option.spec for layer, option in taken.items() if option.spec is not None}
        return FrontierRow(
            name=name,
            size_mb=self.costs.size(picks) / 1e6,
            effective_bits=self.costs.effective_bits(picks),
            expected=sum(options[pick][1] for options, pick in zip(items, picks, strict=True)),
            measured=self.loss.of(grids) if measured else None,
            latency_ms=self.costs.latency_ms(picks, measured),
        )


@dataclass(frozen=True)
class ActivationSelection:
    """Bits for the activations, for a mean.

    Args:
        tensors: the activations and their options.
        loss: measures.
        file: losses that are known.
        widths: for the rows of uniform bits.
        bits: of a value in the mean.

    Example:
        >>> import torch
        >>> from lq.analysis.bits.activations import Activations
        >>> from lq.config.specs import ActivationSpec
        >>> from lq.conversion.graph import as_graph
        >>> from lq.ptq.batches import run_batch
        >>> from lq.ptq.static import prepare_static
        >>> x, specs = torch.eye(4), {4: [ActivationSpec(0, 15)] * 2, 8: [ActivationSpec()] * 2}
        >>> graph = as_graph(prepare_static(torch.nn.Sequential(torch.nn.Linear(4, 4)), [x]))
        >>> activations = Activations(graph, specs)
        >>> loss = RoundingLoss(graph, [x], run_batch, lambda batch: None, lambda: None, activations=activations)
        >>> tensors = activations.choices(x, run_batch, [4, 8])
        >>> found = ActivationSelection(tensors, loss, ResultFile(None, {}), (4, 8), bits=6).found({})
        >>> {name: option.width for name, option in found.options.items()}  # zeros and ones lose nothing with 4 bits
        {'input_1': 4, '0': 8}
    """

    tensors: Sequence[ActivationChoices]
    loss: RoundingLoss
    file: ResultFile
    widths: Sequence[int]
    bits: float

    def found(self, weights: Mapping[str, WeightSpec]) -> ActivationBits:
        """The choice, measured alone and with these weights, and what others would lose."""
        items = [self._options(tensor) for tensor in self.tensors]
        chosen = solve(items, activation_capacity(self.tensors, self.bits))
        rows = [self._row("", point.picks, items) for point in _some(frontier(items))]
        for width in self.widths:
            picks = [_at(tensor.options, width) for tensor in self.tensors]
            rows.append(self._row(f"all {width} bits", picks, items, measured=True))
        rows.append(self._row("chosen", chosen.picks, items, measured=True))
        rows.sort(key=lambda row: (row["bits"], -row["expected"]))
        options = {tensor.name: tensor.options[p] for tensor, p in zip(self.tensors, chosen.picks, strict=True)}
        together = self.loss.of(weights, {name: option.width for name, option in options.items()})
        return ActivationBits(options, rows, together)

    def _options(self, tensor: ActivationChoices) -> Options:
        return [(tensor.values * o.spec.bits, self._loss_of(tensor.name, o)) for o in tensor.options]

    def _loss_of(self, tensor: str, option: ActivationOption) -> float:
        name = f"activation of {tensor}: {option.spec}"
        if name not in self.file.results:
            self.file.add(name, self.loss.of({}, {tensor: option.width}))
        return self.file.results[name]

    def _row(self, name: str, picks: Sequence[int], items: Sequence[Options], measured: bool = False) -> ActivationRow:
        taken = [options[pick] for options, pick in zip(items, picks, strict=True)]
        widths = {t.name: t.options[pick].width for t, pick in zip(self.tensors, picks, strict=True)}
        return ActivationRow(
            name=name,
            bits=sum(cost for cost, _ in taken) / sum(tensor.values for tensor in self.tensors),
            expected=sum(loss for _, loss in taken),
            measured=self.loss.of({}, widths) if measured else None,
        )


def _at(options: Sequence[LayerOption | ActivationOption], width: int) -> int:
    """Index of the option that a width means: the one with the most bits up to it, or else the first."""
    fitting = [index for index, option in enumerate(options) if option.width <= width]
    return fitting[-1] if fitting else 0


def _some(points: Sequence[Any], most: int = 12) -> list[Any]:
    """Points at equal distances in cost, both ends included."""
    low, high = points[0].cost, points[-1].cost
    wanted = [low + (high - low) * index / (most - 1) for index in range(most)]
    near: Mapping[int, Any] = {
        (nearest := min(points, key=lambda point: abs(point.cost - cost))).cost: nearest for cost in wanted
    }
    return list(near.values())
