"""One look at all layers of a prepared model: noise, sensitivity, time, ranges, and which layers to leave in float."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lq.analysis.costs import CostRow, layer_costs
from lq.analysis.exclusions import Exclusions, propose_exclusions
from lq.analysis.range_counts import RangeRow
from lq.analysis.ranges import range_statistics
from lq.analysis.score import OneMetric, Score
from lq.analysis.sensitivity import SensitivityOptions, SensitivityRow, sensitivity
from lq.analysis.sqnr import SqnrRow, sqnr_per_layer
from lq.conversion.graph import as_graph
from lq.export.artifact.directory import AnyPath
from lq.ptq.batches import first_batches

_SQNR_BATCHES = 1  # all activations of a batch are held in memory


@dataclass(frozen=True)
class LayerAnalysis:
    """What :func:`analyze_layers` found.

    Args:
        sqnr: a row per tensor.
        sensitivity: a row per layer.
        costs: a row per layer.
        ranges: a row per tensor.
        exclusions: which layers to leave in float.

    Example:
        >>> found = LayerAnalysis([], [], [], [], exclusions=Exclusions((), "nothing to exclude"))
        >>> found.exclusions.layers
        ()
    """

    sqnr: Sequence[SqnrRow]
    sensitivity: Sequence[SensitivityRow]
    costs: Sequence[CostRow]
    ranges: Sequence[RangeRow]
    exclusions: Exclusions

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; ``exclude`` holds patterns for ``qconfig.exclude``."""
        return {**dataclasses.asdict(self), "exclude": list(self.exclusions.patterns)}


def analyze_layers(
    prepared: nn.Module,
    batches: Iterable[Any],
    metric: OneMetric | None = None,
    direction: str = "all_but_one",
    resume_file: AnyPath | None = None,
    options: SensitivityOptions | None = None,
    threads: int = 1,
    score: Score | None = None,
) -> LayerAnalysis:
    """Look at every weight, activation and layer of a prepared model.

    Args:
        prepared: from :func:`lq.prepare`, with ranges; it is left as it is.
        batches: data; with labels if there is a metric.
        metric: as for :func:`~lq.analysis.sensitivity.sensitivity`, and so is the rest.
        direction: "one" or "all_but_one".
        resume_file: keeps the sensitivities.
        options: how to run and judge a batch.
        threads: of the times.
        score: evaluates in the place of ``metric``.

    Returns:
        everything.

    Raises:
        ValueError: as the single analyses do.

    Example:
        >>> import torch
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.randn(64, 4)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> found = analyze_layers(prepare_static(net, [x]), [x])
        >>> len(found.sqnr), len(found.sensitivity), len(found.costs), len(found.ranges)
        (6, 2, 2, 5)
    """
    options, prepared = options or SensitivityOptions(), as_graph(prepared)
    kept = list(first_batches(batches, options.limit, "analyze_layers()"))
    sensitive = sensitivity(prepared, kept, metric, direction, resume_file, options, score)
    costs = layer_costs(prepared, kept[0], options.call, threads)
    return LayerAnalysis(
        sqnr=sqnr_per_layer(prepared, kept[:_SQNR_BATCHES], options.call, int8=True),
        sensitivity=sensitive,
        costs=costs,
        ranges=range_statistics(prepared, kept, options.call),
        exclusions=propose_exclusions(sensitive, costs),
    )
