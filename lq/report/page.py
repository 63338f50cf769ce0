"""The page that joins table, pictures and plan; from plain rows, with a section for whatever is given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lq.report.html import Section, write_report
from lq.report.pictures import training_pictures
from lq.report.plots import plot_models, plot_overview, plot_sensitivity, plot_sqnr, plot_tradeoff
from lq.report.table import distinct_metrics, number

Row = Mapping[str, Any]
Rows = Sequence[Row]


@dataclass(frozen=True)
class Findings:
    """What is known of a model; sections without rows are left out.

    Args:
        comparison: rows of the comparison table.
        history: of the training, from :func:`lq.report.history.read_history`.
        sqnr: from :func:`lq.analysis.sqnr_per_layer`.
        sensitivity: from :func:`lq.analysis.sensitivity`.
        exclusions: proposal, from :func:`lq.analysis.propose_exclusions`.
        excluded: layers that it proposes.
        ranges: from :func:`lq.analysis.range_statistics`.
        plan: ``str(lq.plan_of(prepared))``.
        notes: how the figures were taken: data, machine, command.

    Example:
        >>> rows = [{"model": "FP32", "metrics": {"accuracy": 0.92}, "size_mb": 14.0}]
        >>> findings = Findings(comparison=rows, plan="fc  Linear")
        >>> [name for name, value in vars(findings).items() if value]  # what the page will have sections for
        ['comparison', 'plan']
    """

    comparison: Rows = ()
    history: Rows = ()
    sqnr: Rows = ()
    sensitivity: Rows = ()
    exclusions: str = ""
    excluded: Sequence[str] = ()
    ranges: Rows = ()
    plan: str = ""
    notes: str = ""


def write_page(path: str | os.PathLike[str], title: str, findings: Findings) -> Path:
    """Write the HTML report of one model; needs matplotlib (extra ``plots``).

    Args:
        path: of the file.
        title: of the page.
        findings: what to show.

    Returns:
        the path.

    Raises:
        ValueError: if there is nothing to show.

    Example:
        >>> import tempfile
        >>> rows = [{"model": "FP32", "metrics": {"accuracy": 0.92}, "size_mb": 14.0}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_page(f"{folder}/report.html", "MobileNetV2", Findings(comparison=rows))
        ...     "0.9200" in path.read_text(encoding="utf-8")
        True
    """
    builders = (_comparison, _training, _sqnr, _sensitivity, _ranges, _plan)
    sections = [section for build in builders if (section := build(findings)) is not None]
    return write_report(path, title, sections)


def write_picture(path: str | os.PathLike[str], title: str, findings: Findings) -> Path:
    r"""Write one picture that says it all, for a README: what each model reaches, and which layers cause the loss.

    Args:
        path: of the PNG file; its directory is made.
        title: of the picture.
        findings: with comparison and sensitivity.

    Returns:
        the path.

    Raises:
        ValueError: if either is missing.

    Example:
        >>> import tempfile
        >>> models = [{"model": "FP32", "metrics": {"accuracy": 0.92}}, {"model": "int8", "metrics": {"accuracy": 0.9}}]
        >>> loss = {"layer": "fc", "direction": "one", "metric": "accuracy", "loss": 0.02, "share": 0.5}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_picture(f"{folder}/pictures/net.png", "MobileNetV2", Findings(models, sensitivity=[loss]))
        ...     path.read_bytes()[1:4]
        b'PNG'
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    plot_overview(findings.comparison, findings.sensitivity, title).savefig(file, dpi=110)
    return file


def _comparison(findings: Findings) -> Section | None:
    rows = findings.comparison
    if not rows:
        return None
    names = distinct_metrics(rows)
    extras = [(key, label, form) for key, label, form in _COLUMNS if any(row.get(key) is not None for row in rows)]
    if len({row["threads"] for row in rows if row.get("threads") is not None}) == 1:
        extras = [column for column in extras if column[0] != "threads"]  # the notes say it
    table = []
    for row in rows:
        line = {"model": row["model"], **{name: number((row.get("metrics") or {}).get(name), ".4f") for name in names}}
        line |= {label: number(row.get(key), form) for key, label, form in extras}
        table.append(line)
    figures = []
    if names and len(rows) > 1:
        figures.append(
            (plot_models(rows), "The dashed line is FP32; an arrow at the edge marks a model that is far from it.")
        )
    if names and any(row.get(key) is not None for row in rows for key in ("latency_ms", "size_mb")):
        words = "Models further to the left cost less. Those without a measured cost are not shown."
        figures.append((plot_tradeoff(rows), words))
    return Section("Comparison", findings.notes, rows=table, figures=figures)


_COLUMNS = (
    ("size_mb", "size, MB", ".2f"),
    ("latency_ms", "latency, ms", ".2f"),
    ("threads", "threads", "d"),
    ("recovered", "gap recovered", ".0%"),
    ("agreement", "agreement", ".2%"),
    ("sqnr_db", "SQNR, dB", ".1f"),
)


def _training(findings: Findings) -> Section | None:
    figures = [(figure, words) for _, figure, words in training_pictures(findings.history)]
    return Section("Training", figures=figures) if figures else None


def _sqnr(findings: Findings) -> Section | None:
    if not findings.sqnr:
        return None
    text = (
        "A low value means that rounding this tensor to its grid causes a large error. Where the line of accumulated "
        "values drops, that layer adds noise."
    )
    rows = [
        {"tensor": row["name"], "kind": row["kind"]} | {label: number(row.get(key), ".1f") for key, label in _DECIBELS}
        for row in findings.sqnr
    ]
    figures = [(plot_sqnr(findings.sqnr), "Signal-to-quantization-noise ratio, layers in execution order.")]
    return Section("Noise, tensor by tensor", text, rows, figures, folded=True)


_DECIBELS = (
    ("sqnr_db", "alone, dB"),
    ("worst_channel_db", "worst channel, dB"),
    ("accumulated_db", "accumulated, dB"),
    ("int8_db", "int8, dB"),
)


def _sensitivity(findings: Findings) -> Section | None:
    if not findings.sensitivity:
        return None
    picture = plot_sensitivity(findings.sensitivity, top=20, excluded=findings.excluded)
    words = "What quantizing each layer costs, the most sensitive first."
    text = ""
    if findings.sensitivity[0]["metric"] == "sqnr_db":
        text = "Measured by the noise at the output. If the metric has lost nothing, no layer needs to stay in float."
    return Section("Sensitive layers", text, figures=[(picture, words)], code=findings.exclusions)


def _ranges(findings: Findings) -> Section | None:
    if not findings.ranges:
        return None
    rows = [
        {
            "tensor": row["name"],
            "kind": row["kind"],
            "range": f"[{row['low']:.3g}, {row['high']:.3g}]",
            "levels used": f"{row['used_levels']} of {row['levels']}",
            "saturated": f"{row['saturated']:.2%}",
            "dead": row["dead"],
        }
        for row in findings.ranges
    ]
    text = (
        "Levels that never occur are wasted bits; saturated values lie outside the grid. Dead are channels of a weight "
        "whose integers are all 0, and activations with a single value."
    )
    return Section("Ranges", text, rows, folded=True)


def _plan(findings: Findings) -> Section | None:
    return Section("Plan", code=findings.plan, folded=True) if findings.plan else None
