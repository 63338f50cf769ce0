"""Which few layers have to stay in float, found by trying them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from lq.analysis.costs import layer_costs
from lq.analysis.exclusions import Candidate, Exclusions, rank_layers
from lq.analysis.score import Score, single_metric
from lq.analysis.sensitivity import SensitivityOptions, sensitivity
from lq.analysis.tensors import evaluating, require_ranges
from lq.checks import check_integer, check_number
from lq.console import BatchCounter
from lq.conversion.graph import as_graph
from lq.metrics.comparison import AnyMetric
from lq.ptq.batches import first_batches
from lq.ptq.layers import layers_of
from lq.ptq.switch import quantize_only

_NOISE_BATCHES = 2  # what noise a layer adds shows on few images
_MIN_SHARE = 0.01  # of the noise; where one layer drowns everything, the next has a small share


@dataclass(frozen=True)
class AutoExclude:
    """How many layers may stay in float, and when.

    Args:
        max_layers: the largest number of layers to leave in float.
        max_drop: the loss by quantization that is allowed, in the unit of the metric. If the loss is smaller, nothing
            is excluded; otherwise only as many layers as are needed to reach it.
        max_slowdown: how much longer all int8 layers together may take, as a share.
        batches: validation batches to calibrate and to evaluate on; they are kept in memory.

    Raises:
        TypeError: if something is no number.
        ValueError: if a number is out of range.

    Example:
        >>> AutoExclude(max_layers=1).max_drop
        0.005
    """

    max_layers: int = 2
    max_drop: float = 0.005
    max_slowdown: float = 0.25
    batches: int = 10

    def __post_init__(self) -> None:
        for name, usual in (("max_layers", 2), ("batches", 10)):
            check_integer(f"auto_exclude: {name}", getattr(self, name), usual, least=1)
        for name in ("max_drop", "max_slowdown"):
            check_number(f"auto_exclude: {name}", getattr(self, name), 0.005)
            if not getattr(self, name) >= 0:
                raise ValueError(f"auto_exclude: {name}={getattr(self, name)} must be 0 or more, e.g. 0.005.")


def find_exclusions(
    prepared: nn.Module,
    batches: Iterable[Any],
    metric: AnyMetric | None = None,
    limits: AutoExclude | None = None,
    options: SensitivityOptions | None = None,
    score: Score | None = None,
) -> Exclusions:
    """If quantization hurts, leave the worst layers in float, one by one, until it does not.

    Layers are tried in float in the order of the noise that each adds to the output, as long as ``max_slowdown``
    allows. The metric decides after each trial. Layers that turn out not to be needed stay quantized.

    Args:
        prepared: from :func:`lq.prepare_static`, with ranges; it is left as it is.
        batches: data with labels.
        metric: any torchmetrics metric, the first of a collection; None is multiclass accuracy.
        limits: see :class:`AutoExclude`.
        options: how to run a batch and find its labels; its ``limit`` is not used.
        score: evaluates the trials in the place of ``metric``.

    Returns:
        what to exclude: ``found.apply(qconfig)`` is the new qconfig.

    Raises:
        TypeError: if ``metric`` is not a torchmetrics metric.
        ValueError: if the model has no ranges, there is no batch, or the metric does not fit.

    Example:
        >>> import torch
        >>> from lq.ptq.static import prepare_static
        >>> net, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)), torch.eye(4)
        >>> batches = [(x, net(x).argmax(1))]
        >>> print(find_exclusions(prepare_static(net, batches), batches, limits=AutoExclude(max_drop=0.5)))
        nothing to exclude: quantization takes accuracy from 1 to ... (a loss of 0.5 is allowed)
    """
    limits, options = limits or AutoExclude(), options or SensitivityOptions()
    require_ranges(prepared, "find_exclusions()")
    prepared = as_graph(prepared)
    kept = list(first_batches(batches, limits.batches, "find_exclusions()"))
    score = score or Score(kept, single_metric(metric), options.call, options.target_fn, options.higher_is_better)
    trials = _Trials(prepared, score, options.show_progress)
    with trials.running(2):
        exact, drop = trials.start()
    loss = f"quantization takes {score.name} from {exact:.4g} to {exact - score.sign * drop:.4g}"
    if drop <= limits.max_drop:
        return Exclusions((), f"nothing to exclude: {loss} (a loss of {limits.max_drop:g} is allowed)")
    some, how = kept[:_NOISE_BATCHES], replace(options, limit=_NOISE_BATCHES)
    noise = sensitivity(prepared, some, None, "one", options=how)
    ranked = rank_layers(noise, layer_costs(prepared, kept[0], options.call), _MIN_SHARE)
    ranked.sort(key=lambda candidate: -candidate.share)
    with trials.running(2 * limits.max_layers - 1):
        found, left = _exclude(ranked, limits, trials, drop)
    chosen = [candidate for candidate in found if candidate.excluded]
    if not chosen:
        return Exclusions(
            tuple(found), f"nothing worth excluding: {loss}, and leaving single layers in float does not help"
        )
    time = sum(candidate.slowdown for candidate in chosen)
    count = f"{len(chosen)} layer{'' if len(chosen) == 1 else 's'}"
    with_float = f"with {count} in float it is {exact - score.sign * left:.4g}"
    return Exclusions(tuple(found), f"{loss}; {with_float}, for +{time:.1%} time")


class _Trials:
    """Judges the model with some layers in float."""

    def __init__(self, prepared: fx.GraphModule, score: Score, show_progress: bool) -> None:
        self.prepared, self.score, self.show_progress = prepared, score, show_progress
        self.layers = [layer.name for layer in layers_of(prepared)]
        self.exact = 0.0

    @contextmanager
    def running(self, count: int) -> Iterator[None]:
        """Around so many trials."""
        total = count * len(self.score.batches)
        with evaluating(self.prepared), BatchCounter("lq: layers in float", total, shown=self.show_progress) as counter:
            self.advance = counter.advance
            yield

    def start(self) -> tuple[float, float]:
        """The figure of the float model, and what quantizing all layers costs."""
        self.exact = self._value([])
        return self.exact, self.drop([])

    def drop(self, in_float: Sequence[str]) -> float:
        """What quantizing all others costs."""
        return self.score.sign * (self.exact - self._value([name for name in self.layers if name not in in_float]))

    def _value(self, layers: list[str]) -> float:
        with quantize_only(self.prepared, layers):
            return self.score.of(self.prepared, advance=self.advance)


def _exclude(
    ranked: Sequence[Candidate], limits: AutoExclude, trials: _Trials, drop: float
) -> tuple[list[Candidate], float]:
    """What became of each layer that was considered, and the loss that is left."""
    found: list[Candidate] = []
    tried: list[Candidate] = []
    drops, spent = [drop], 0.0
    for candidate in ranked:
        if len(tried) >= limits.max_layers or drops[-1] <= limits.max_drop:
            break
        if spent + candidate.slowdown > limits.max_slowdown:
            found.append(replace(candidate, reason=f"would exceed max_slowdown={limits.max_slowdown:g}"))
            continue
        tried.append(candidate)
        spent += candidate.slowdown
        drops.append(trials.drop([candidate.layer for candidate in tried]))
    best = drops.index(min(drops))
    needed, left = _needed([candidate.layer for candidate in tried[:best]], limits, trials, drops[best])
    for index, candidate in enumerate(tried):
        reason = f"in float, it takes the loss from {drops[index]:.4g} to {drops[index + 1]:.4g}"
        if index < best and candidate.layer not in needed:
            reason += "; not needed beside the others"
        found.append(replace(candidate, excluded=candidate.layer in needed, reason=reason))
    return found, left


def _needed(layers: list[str], limits: AutoExclude, trials: _Trials, left: float) -> tuple[list[str], float]:
    """The layers without those that came to help before the ones that do, and the loss that is left then."""
    for layer in layers[:-1]:
        others = [other for other in layers if other != layer]
        without = trials.drop(others)
        if without <= max(left, limits.max_drop):
            layers, left = others, without
    return layers, left
