"""Bits for each layer under a budget, from what each costs and what rounding it does to the output."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lq.analysis.bits.budget import LATENCY, Budget
from lq.analysis.bits.choice import BitChoice, FrontierRow
from lq.analysis.bits.costs import Costs, float_bytes
from lq.analysis.bits.knapsack import Options, frontier
from lq.analysis.bits.latency import calibrated_by
from lq.analysis.bits.layers import (
    FLOAT,
    LayerChoices,
    LayerOption,
    at_width,
    grids_of,
    layer_choices,
)
from lq.analysis.bits.losses import WeightLoss
from lq.analysis.bits.timed import MOST_MEASURED, costs_of
from lq.analysis.resume import ResultFile, fingerprint
from lq.backends.prepare import prepare
from lq.checks import as_dataclass, check_integer, check_module, shown
from lq.compat.float64 import as_float64
from lq.config.qconfig import QConfig, as_qconfig
from lq.console import BatchCounter
from lq.conversion.graph import as_graph
from lq.export.exporters import EXPORTERS, Choice
from lq.lightning_module.copies import float_copy
from lq.metrics.outputs import plain_targets_of
from lq.ptq.batches import Call, first_batches, first_inputs, run_batch
from lq.ptq.calibrate import calibrate
from lq.tracing.exported_call import call_to_export

_WIDTHS, _TIMED = (2, 3, 4, 5, 6, 8), (8, FLOAT)


@dataclass(frozen=True)
class AutoBits:
    """How many bits the weights may have, and what they may cost together.

    Args:
        budget: ``size=2.5MB``, of the deployed model's tensors: weights as stored, everything else in float32;
            ``effective_bits=5``, stored bits of a quantized weight in the mean; or ``latency=0.6@onnx``, of a call with
            one sample on one thread of this machine: a part of the float model's latency, or ``latency=2.5ms@onnx``.
        widths: bits that a layer may have, from 2 to 8, and 32 for float. 8 is the weight grid of the preset. ``None``
            is 2, 3, 4, 5, 6 and 8. A latency leaves the choice between 8 and 32: int8 kernels take the same time for
            fewer bits.
        batches: validation batches to measure on; they are kept in memory.
        resume_file: JSON file in which every measured loss is kept at once. It serves other budgets as well, and an
            interrupted search goes on from it.

    Raises:
        TypeError: if a setting is no number, or the budget no text.
        ValueError: if the budget cannot be read, or a width is out of range.

    Example:
        >>> AutoBits("size=2.5MB").allowed, AutoBits("latency=0.6@onnx").allowed
        ((2, 3, 4, 5, 6, 8), (8, 32))
    """

    budget: str = "effective_bits=4"
    widths: tuple[int, ...] | None = None
    batches: int = 2
    resume_file: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        limits_time = Budget.parse(self.budget).kind == LATENCY
        check_integer("auto_bits: batches", self.batches, 2)
        if self.batches < 1:
            raise ValueError(f"auto_bits: batches={self.batches} must be at least 1.")
        if self.widths is None:
            return
        _check_widths(self.widths)
        object.__setattr__(self, "widths", tuple(sorted(set(self.widths))))
        if limits_time and self.widths != _TIMED:
            raise ValueError(
                f"auto_bits: widths={list(self.widths)} with {self.budget}: int8 kernels take the same time for fewer "
                "bits, so a latency leaves the choice between 8 and 32, float. Leave widths out, or limit the size."
            )
        if min(self.widths, default=FLOAT) == FLOAT:
            raise ValueError(f"auto_bits: widths={list(self.widths)} leave no choice; write e.g. [2, 4, 8].")

    @property
    def allowed(self) -> tuple[int, ...]:
        """The widths that the search tries, in ascending order."""
        return self.widths or (_TIMED if Budget.parse(self.budget).kind == LATENCY else _WIDTHS)


def as_auto_bits(given: str | AutoBits | Mapping[str, Any] | None) -> AutoBits:
    """The settings; text is a budget.

    Raises:
        TypeError: if it is something else.
        ValueError: if a setting does not exist or is out of range.

    Example:
        >>> as_auto_bits("size=2.5MB").budget
        'size=2.5MB'
    """
    if isinstance(given, str):
        return AutoBits(given)
    if given is None or isinstance(given, (AutoBits, Mapping)):
        return as_dataclass(AutoBits, given, "auto_bits")
    raise TypeError(f"auto_bits={shown(given)} ({type(given).__name__}) must be a budget, e.g. 'effective_bits=4'.")


def _check_widths(widths: Any) -> None:
    if isinstance(widths, str) or not isinstance(widths, Sequence):
        raise TypeError(f"auto_bits: widths={shown(widths)} must be a list of bits, e.g. [2, 4, 8].")
    for width in widths:
        check_integer("auto_bits: a width", width, 4)
        if not (2 <= width <= 8 or width == FLOAT):
            raise ValueError(f"auto_bits: width {width} must be from 2 to 8 bits, or {FLOAT} for float.")


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
    r"""Choose the bits of each weight such that a budget is kept and the loss is least.

    .. math:: \min_{b} \sum_l L_l(b_l) \quad \text{such that} \quad \sum_l c_l(b_l) \le C

    with the loss :math:`L_l(b)` of the output when only the weight of layer l is rounded, to b bits, and its cost
    :math:`c_l(b)`. The sum is minimized exactly. That losses add up is an assumption; the rows say what was measured
    with all weights rounded.

    Args:
        model: in float; it is left as it is.
        batches: data; with class labels the loss is the KL divergence of class scores, otherwise noise over signal.
        qconfig: what is quantized. Layers that it overrides keep their bits, and so do the first and last ones unless
            ``keep`` is "nothing".
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
    grids = grids_of(twin, qconfig, widths, example)
    weights_are = fingerprint(twin)
    in_float = float_bytes(twin)
    whole = at_width(qconfig, max(grids))
    prepare(twin, whole, *copy.deepcopy(example))
    calibrate(twin, kept, run, len(kept), show_progress=False)
    graph = as_graph(twin, call_to_export(twin, example))
    layers = layer_choices(graph, grids, widths, exporters)
    trials = sum(option.spec is not None for layer in layers for option in layer.options) + len(widths) + 2
    total = trials * len(kept) + (MOST_MEASURED if budget.kind == LATENCY else 0)
    counter = BatchCounter(f"lq: bits of {len(layers)} layers", total, shown=show_progress)
    ranges = calibrated_by(kept, run, counter.advance)
    with counter, torch.no_grad(), costs_of(budget, whole, graph, layers, in_float, model, example, ranges) as costs:
        costs.check()
        loss = WeightLoss(
            graph, kept, run, target_fn or plain_targets_of, counter.advance, activations=budget.kind == LATENCY
        )
        file = ResultFile(options.resume_file, _key(weights_are, loss), replace_other=True)
        return _Search(layers, costs, loss, file, widths).found()


def _key(weights_are: str, loss: WeightLoss) -> dict[str, Any]:
    data = [float(as_float64(out).square().sum()) for out in loss.reference.outputs]
    return {"model": weights_are, "loss": loss.name, "outputs on the data": data}


@dataclass(frozen=True)
class _Search:
    layers: Sequence[LayerChoices]
    costs: Costs
    loss: WeightLoss
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
        name = f"{layer}: {option.label}{' and activations' * self.loss.activations}"
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


def _some(points: Sequence[Any], most: int = 12) -> list[Any]:
    """Points at equal distances in cost, both ends included."""
    low, high = points[0].cost, points[-1].cost
    wanted = [low + (high - low) * index / (most - 1) for index in range(most)]
    near: Mapping[int, Any] = {
        (nearest := min(points, key=lambda point: abs(point.cost - cost))).cost: nearest for cost in wanted
    }
    return list(near.values())
