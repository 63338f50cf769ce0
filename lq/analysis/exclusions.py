"""Which layers to leave in float: what each brings against what it costs."""

from __future__ import annotations

import glob
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lq.analysis.costs import CostRow
from lq.analysis.sensitivity import SensitivityRow
from lq.config.qconfig import QConfig
from lq.config.reading import as_qconfig

HARMLESS_DB = 30.0  # the noise has a thousandth of the signal's power
HARMLESS_LOSS = 0.002


@dataclass(frozen=True)
class Candidate:
    """One layer, and what was decided.

    Args:
        layer: its name.
        share: of the loss that quantization does, in [0, 1].
        slowdown: what leaving it in float would add to the time of all int8 layers, as a share of that.
        excluded: whether to leave it in float.
        reason: why, or why not.

    Example:
        >>> import torch
        >>> from lq.analysis.sensitivity import sensitivity
        >>> from lq.ptq.static import prepare_static
        >>> prepared, x = prepare_static(torch.nn.Sequential(torch.nn.Linear(4, 4)), [torch.eye(4)]), torch.eye(4)
        >>> (candidate,) = propose_exclusions(sensitivity(prepared, [x]), enough=200.0).candidates
        >>> candidate.layer, candidate.excluded, candidate.reason
        ('0', True, 'most loss per time')
    """

    layer: str
    share: float
    slowdown: float
    excluded: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Exclusions:
    """A proposal; ``str`` of it is a table.

    Args:
        candidates: the layers that cause a loss worth mentioning, in the order in which they were considered.
        verdict: one sentence on the whole.

    Example:
        >>> found = Exclusions((Candidate("stem", 0.9, 0.01, excluded=True), Candidate("body", 0.1, 0.2)), "")
        >>> found.layers, found.patterns
        (('stem',), ('stem',))
    """

    candidates: tuple[Candidate, ...]
    verdict: str

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers to leave in float."""
        return tuple(candidate.layer for candidate in self.candidates if candidate.excluded)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The same as patterns for ``QConfig(exclude=...)``."""
        return tuple(glob.escape(layer) for layer in self.layers)

    @property
    def slowdown(self) -> float:
        """What all of them together add to the time of the int8 layers, as a share."""
        return sum(candidate.slowdown for candidate in self.candidates if candidate.excluded)

    def apply(self, qconfig: QConfig | str) -> QConfig:
        """The qconfig with these layers excluded too."""
        qconfig = as_qconfig(qconfig)
        return replace(qconfig, exclude=(*qconfig.exclude, *(p for p in self.patterns if p not in qconfig.exclude)))

    def __str__(self) -> str:
        width = max((len(candidate.layer) for candidate in self.candidates), default=0)
        lines = [self.verdict]
        for c in self.candidates:
            mark = "exclude" if c.excluded else "keep   "
            lines.append(f"  {mark} {c.layer:<{width}}  {c.share:6.1%} of the loss, +{c.slowdown:.1%} time: {c.reason}")
        return "\n".join(lines)


def propose_exclusions(
    rows: Sequence[SensitivityRow],
    costs: Sequence[CostRow] | None = None,
    *,
    enough: float | None = None,
    max_slowdown: float = 0.25,
    min_share: float = 0.05,
) -> Exclusions:
    """Propose layers to leave in float: those with the largest loss per time first, until the rest is good enough.

    The expected result assumes that the losses of several layers add up, scaled to the loss of the whole model. This is
    an estimate; measure the model with the proposal applied.

    Args:
        rows: from :func:`~lq.analysis.sensitivity.sensitivity`, best with ``direction="all_but_one"``.
        costs: from :func:`~lq.analysis.costs.layer_costs`; without them layers are taken by loss alone.
        enough: stop there: an SQNR in dB (30 if None) or a loss of the metric against float (0.002).
        max_slowdown: how much longer all int8 layers together may take, as a share.
        min_share: layers that cause less than this share of the loss are not considered.

    Returns:
        the proposal.

    Raises:
        ValueError: if there are no rows, they are of several measurements, or ``costs`` lacks a layer.

    Example:
        >>> rows = [
        ...     SensitivityRow(layer=name, direction="all_but_one", metric="accuracy", value=0.0, float_value=0.92,
        ...         quantized_value=0.82, loss=loss, share=loss / 0.1)
        ...     for name, loss in (("stem", 0.09), ("body", 0.002))
        ... ]
        >>> print(propose_exclusions(rows))
        1 layer in float would leave an expected loss of 0.0100 in accuracy instead of 0.1000, for +0.0% time
          exclude stem   90.0% of the loss, +0.0% time: most loss per time
    """
    _check(rows, costs)
    whole, limit = _whole(rows), _limit(rows[0], enough)
    if whole <= limit:
        return Exclusions((), f"nothing to exclude: {_expected(rows[0], whole)} is enough")
    left, spent, found = whole, 0.0, []
    for candidate in rank_layers(rows, costs, min_share):
        if left <= limit:
            decided = replace(candidate, reason="good enough without")
        elif spent + candidate.slowdown > max_slowdown:
            decided = replace(candidate, reason=f"would exceed max_slowdown={max_slowdown:g}")
        else:
            decided = replace(candidate, excluded=True, reason="most loss per time")
            left, spent = max(left - candidate.share * whole, 0.0), spent + candidate.slowdown
        found.append(decided)
    return Exclusions(tuple(found), _verdict(rows[0], found, whole, left, spent))


def rank_layers(
    rows: Sequence[SensitivityRow], costs: Sequence[CostRow] | None = None, min_share: float = 0.05
) -> list[Candidate]:
    """The layers that cause at least ``min_share`` of the loss, the most loss per time first; nothing is decided yet.

    Example:
        >>> row = SensitivityRow(layer="stem", direction="one", metric="accuracy", value=0.84, float_value=0.92,
        ...     quantized_value=0.82, loss=0.08, share=0.8)
        >>> rank_layers([row, {**row, "layer": "fc", "loss": 0.001}])[0].layer
        'stem'
    """
    whole = _whole(rows)
    if whole <= 0:
        return []
    slowdown, loss = _slowdowns(costs), _additive_losses(rows, whole)
    worth = [layer for layer, value in loss.items() if value >= min_share * whole]
    worth.sort(key=lambda layer: -loss[layer] / max(slowdown.get(layer, 0.0), 1e-4))
    return [Candidate(layer, loss[layer] / whole, slowdown.get(layer, 0.0)) for layer in worth]


def _additive_losses(rows: Sequence[SensitivityRow], whole: float) -> dict[str, float]:
    """Losses that do not add up to more than that of the whole model; alone ("one"), neither to less."""
    total = sum(max(row["loss"], 0.0) for row in rows)
    factor = whole / total if total > whole or (rows[0]["direction"] == "one" and total > 0) else 1.0
    return {row["layer"]: row["loss"] * factor for row in rows}


def _verdict(row: SensitivityRow, found: list[Candidate], whole: float, left: float, spent: float) -> str:
    count = sum(candidate.excluded for candidate in found)
    if not count:
        return f"nothing worth excluding: the loss is spread over all layers ({_expected(row, whole)})"
    plural = "" if count == 1 else "s"
    before = _expected(row, whole).partition(" of ")[2].partition(" in ")[0]
    return (
        f"{count} layer{plural} in float would leave an expected {_expected(row, left)} instead of {before}, "
        f"for +{spent:.1%} time"
    )


def _expected(row: SensitivityRow, loss: float) -> str:
    if row["metric"] == "sqnr_db":
        return f"SQNR of {-10 * math.log10(loss):.1f} dB" if loss > 0 else "SQNR far beyond"
    return f"loss of {loss:.4f} in {row['metric']}"


def _whole(rows: Sequence[SensitivityRow]) -> float:
    """The loss of quantizing everything; none if the quantized model is no worse than the float one."""
    first = rows[0]
    if first["metric"] == "sqnr_db":
        return float(10 ** (-first["quantized_value"] / 10))
    if first["share"] is None or first["float_value"] is None:
        return 0.0
    return abs(first["float_value"] - first["quantized_value"])


def _limit(row: SensitivityRow, enough: float | None) -> float:
    if row["metric"] == "sqnr_db":
        return float(10 ** (-(HARMLESS_DB if enough is None else enough) / 10))
    return HARMLESS_LOSS if enough is None else enough


def _slowdowns(costs: Sequence[CostRow] | None) -> dict[str, float]:
    timed = [row for row in costs or () if row["int8_ms"] is not None and row["float_ms"] is not None]
    whole = sum(row["int8_ms"] or 0.0 for row in timed)
    return {row["layer"]: max((row["float_ms"] or 0.0) - (row["int8_ms"] or 0.0), 0.0) / whole for row in timed}


def _check(rows: Sequence[SensitivityRow], costs: Sequence[CostRow] | None) -> None:
    if not rows:
        raise ValueError("rows is empty; give what sensitivity(prepared, batches) returns.")
    kinds = {(row["metric"], row["direction"]) for row in rows}
    if len(kinds) > 1:
        raise ValueError(f"rows of several measurements: {sorted(kinds)}; propose from one at a time.")
    missing = {row["layer"] for row in rows} - {row["layer"] for row in costs or rows}
    if missing:
        raise ValueError(f"costs lack {sorted(missing)}; take them from the same model: layer_costs(prepared, batch).")
