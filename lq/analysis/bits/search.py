"""Bits for each weight and activation under a budget, from what each costs and what rounding it does to the output."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lq.analysis.bits.activations import ActivationChoices, ActivationOption, Activations
from lq.analysis.bits.budget import LATENCY, Budget
from lq.analysis.bits.choice import ActivationBits, ActivationRow, BitChoice, FrontierRow
from lq.analysis.bits.costs import Costs, activation_capacity, float_bytes
from lq.analysis.bits.knapsack import Options, frontier, solve
from lq.analysis.bits.latency import calibrated_by
from lq.analysis.bits.layers import (
    FLOAT,
    LayerChoices,
    LayerOption,
    at_width,
    grids_of,
    layer_choices,
)
from lq.analysis.bits.losses import RoundingLoss
from lq.analysis.bits.settings import AutoBits, as_auto_bits
from lq.analysis.bits.timed import MOST_MEASURED, costs_of
from lq.analysis.resume import ResultFile, fingerprint
from lq.backends.prepare import prepare, state_of
from lq.checks import check_module
from lq.compat.float64 import as_float64
from lq.config.qconfig import QConfig, as_qconfig
from lq.config.specs import WeightSpec
from lq.console import BatchCounter
from lq.conversion.graph import as_graph
from lq.export.exporters import EXPORTERS, Choice
from lq.lightning_module.copies import float_copy
from lq.metrics.outputs import plain_targets_of
from lq.ptq.batches import Call, first_batches, first_inputs, run_batch
from lq.ptq.calibrate import calibrate
from lq.tracing.exported_call import call_to_export


def choose_bits(
    model: nn.Module,
    batches: Iterable[Any],
    qconfig: QConfig | str = "portable",
    options: AutoBits | str | None = None,
    call: Call | None = None,
    target_fn: Callable[[Any], Any] | None = None,
    exporters: Sequence[Choice] = ("torch",),
    show_progress: bool = True,
) -> BitChoice:
    r"""Choose the bits of each weight, and of each activation if wanted, such that a budget is kept at the least loss.

    .. math:: \min_{b} \sum_l L_l(b_l) \quad \text{such that} \quad \sum_l c_l(b_l) \le C

    with the loss :math:`L_l(b)` of the output when only the weight of layer l is rounded, to b bits, and its cost
    :math:`c_l(b)`. The sum is minimized exactly. That losses add up is an assumption; the rows say what was measured
    with all weights rounded. With ``activation_bits``, the same is done for the activations, whose cost are the bits of
    their values.

    Args:
        model: in float; it is left as it is.
        batches: data; with class labels the loss is the KL divergence of class scores, otherwise noise over signal.
        qconfig: what is quantized. What it overrides keeps its bits, and so do the first and last layers with their
            inputs and outputs unless ``keep`` is "nothing".
        options: budget and widths; text is a budget.
        call: how to run one batch; ``None`` for :func:`~lq.ptq.batches.run_batch`.
        target_fn: batch -> labels; ``None`` takes those of plain inputs and labels.
        exporters: in whose files the weights are stored.
        show_progress: whether to show how far it is.

    Returns:
        the choice: ``found.apply(qconfig)`` is the new qconfig.

    Raises:
        ValueError: if the budget is smaller than the smallest choice or as large as the float model, there is no batch,
            or a quantizer of PT2E decides on the bits.

    Source:
        Dong et al., "HAWQ-V2", https://arxiv.org/abs/1911.03852, and Yao et al., "HAWQ-V3",
        https://arxiv.org/abs/2011.10680, for sensitivities and an integer program.

    Example:
        >>> net, x = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3)), torch.eye(4)
        >>> found = choose_bits(net, [x], QConfig(keep="nothing"), AutoBits("effective_bits=3.5"))
        >>> found.chosen["effective_bits"] <= 3.5, sorted(found.overrides)
        (True, ['0', '2'])
    """
    check_module("model", model)
    options, qconfig, run = as_auto_bits(options), as_qconfig(qconfig), call or run_batch
    if qconfig.backend == "pt2e":
        raise ValueError(
            f"auto_bits: the quantizer {qconfig.quantizer!r} of backend 'pt2e' decides on the bits; use backend 'fx'."
        )
    budget, widths = Budget.parse(options.budget), options.allowed
    if budget.runtime is not None:
        EXPORTERS[budget.runtime].check_installed()
        # The first and last layers may stay in float as well, and at 8 bits they are like all others.
        qconfig = replace(qconfig, keep="nothing")
    kept = list(first_batches(batches, options.batches, "auto_bits"))
    twin = float_copy(model).eval()
    example = first_inputs(twin, twin, kept[0], run)
    of_activations = options.activation_bits is not None
    grids = grids_of(twin, qconfig, widths, example, of_activations)
    weights_are = fingerprint(twin)
    in_float = float_bytes(twin)
    whole = at_width(qconfig, max(grids), of_activations)
    prepare(twin, whole, *copy.deepcopy(example))
    if of_activations:
        state_of(twin).observe_by("histogram")
    calibrate(twin, kept, run, len(kept), show_progress=False)
    graph = as_graph(twin, call_to_export(twin, example))
    layers = layer_choices(graph, grids, widths, exporters)
    trials = sum(option.spec is not None for layer in layers for option in layer.options) + len(widths) + 2
    activations, tensors = None, []
    if options.activation_bits is not None:
        activations = Activations(graph, {width: at.activations for width, at in grids.items()})
        tensors = activations.choices(kept[0], run, [width for width in widths if width != FLOAT])
        activation_capacity(tensors, options.activation_bits)  # before any loss is measured
        trials += sum(len(tensor.options) for tensor in tensors) + len(widths) + 2
    total = trials * len(kept) + (MOST_MEASURED if budget.kind == LATENCY else 0)
    counter = BatchCounter(f"lq: bits of {len(layers)} layers", total, shown=show_progress)
    ranges = calibrated_by(kept, run, counter.advance)
    with counter, torch.no_grad(), costs_of(budget, whole, graph, layers, in_float, model, example, ranges) as costs:
        costs.check()
        loss = RoundingLoss(
            graph, kept, run, target_fn or plain_targets_of, counter.advance, budget.kind == LATENCY, activations
        )
        file = ResultFile(options.resume_file, _key(weights_are, loss), replace_other=True)
        found = _Search(layers, costs, loss, file, widths).found()
        if options.activation_bits is None:
            return found
        search = _ActivationSearch(tensors, loss, file, widths, options.activation_bits)
        return replace(found, activations=search.found(found.weights))


def _key(weights_are: str, loss: RoundingLoss) -> dict[str, Any]:
    data = [float(as_float64(out).square().sum()) for out in loss.reference.outputs]
    return {"model": weights_are, "loss": loss.name, "outputs on the data": data}


@dataclass(frozen=True)
class _Search:
    layers: Sequence[LayerChoices]
    costs: Costs
    loss: RoundingLoss
    file: ResultFile
    widths: Sequence[int]

    def found(self) -> BitChoice:
        items = [self._options(layer) for layer in self.layers]
        chosen = self.costs.choose(items)
        rows = [self._row("", point.picks, items) for point in _some(frontier(items))]
        for width in self.widths:
            picks = [layer.at(width) for layer in self.layers]
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
class _ActivationSearch:
    tensors: Sequence[ActivationChoices]
    loss: RoundingLoss
    file: ResultFile
    widths: Sequence[int]
    bits: float

    def found(self, weights: Mapping[str, WeightSpec]) -> ActivationBits:
        items = [self._options(tensor) for tensor in self.tensors]
        chosen = solve(items, activation_capacity(self.tensors, self.bits))
        rows = [self._row("", point.picks, items) for point in _some(frontier(items))]
        for width in self.widths:
            if width != FLOAT:
                picks = [tensor.at(width) for tensor in self.tensors]
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


def _some(points: Sequence[Any], most: int = 12) -> list[Any]:
    """Points at equal distances in cost, both ends included."""
    low, high = points[0].cost, points[-1].cost
    wanted = [low + (high - low) * index / (most - 1) for index in range(most)]
    near: Mapping[int, Any] = {
        (nearest := min(points, key=lambda point: abs(point.cost - cost))).cost: nearest for cost in wanted
    }
    return list(near.values())
