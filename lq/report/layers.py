"""What ``lq analyze`` prints and writes."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from lq.console import wide_enough
from lq.report.plots import plot_sensitivity, plot_sqnr
from lq.report.plots.layers import shares_of_loss
from lq.report.table import number

Row = Mapping[str, Any]


def layer_table(sqnr: Sequence[Row], sensitivity: Sequence[Row], costs: Sequence[Row] = ()) -> Table:
    """A line per layer, the one that quantization hurts most first.

    Args:
        sqnr: from :func:`lq.analysis.sqnr_per_layer`.
        sensitivity: from :func:`lq.analysis.sensitivity`.
        costs: from :func:`lq.analysis.layer_costs`.

    Returns:
        the table: SQNR of the layer's weight and output alone, that of its output with all before it quantized, its
        share of the loss, and its time in int8 and in float.

    Raises:
        ValueError: if there are no layers.

    Example:
        >>> noise = [{"name": "fc", "kind": "weight", "sqnr_db": 41.26}]
        >>> loss = [{"layer": "fc", "direction": "one", "metric": "accuracy", "loss": 0.02, "share": 0.5}]
        >>> [cell.plain for column in layer_table(noise, loss).columns for cell in column.cells]
        ['fc', '41.3', '-', '-', '100.0%', '-', '-']
    """
    if not sensitivity:
        raise ValueError("layer_table: no rows; give those of lq.analysis.sensitivity(prepared, batches).")
    headers = ["weight\nSQNR dB", "output\nSQNR dB", "\naccumulated", "share of\nthe loss", "int8\nms", "float\nms"]
    table = Table(
        Column("\nlayer", no_wrap=True, style="cyan"),
        *(Column(header, justify="right", no_wrap=True) for header in headers),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="times of one batch" if costs else None,
        caption_justify="left",
    )
    noise = {(row["name"], row["kind"]): row for row in sqnr}
    times, shares = {row["layer"]: row for row in costs}, shares_of_loss(sensitivity)
    for row in sorted(sensitivity, key=lambda row: -row["loss"]):
        weight, output = noise.get((row["layer"], "weight"), {}), noise.get((row["layer"], "activation"), {})
        cells = [
            number(weight.get("sqnr_db"), ".1f"),
            number(output.get("sqnr_db"), ".1f"),
            number(output.get("accumulated_db"), ".1f"),
            number(shares[row["layer"]], ".1%"),
            number(times.get(row["layer"], {}).get("int8_ms"), ".3f"),
            number(times.get(row["layer"], {}).get("float_ms"), ".3f"),
        ]
        table.add_row(*map(Text, [row["layer"], *cells]))
    return table


def print_layers(found: Mapping[str, Any], proposal: str, console: Console | None = None) -> None:
    """Print the table, the proposal, and the line of YAML that it amounts to.

    Args:
        found: as :meth:`lq.analysis.LayerAnalysis.to_dict` gives it.
        proposal: ``str`` of the exclusions.
        console: where to; None means standard output. The lines in a log file are never broken.

    Example:
        >>> noise = [{"name": "fc", "kind": "weight", "sqnr_db": 41.26}]
        >>> loss = [{"layer": "fc", "direction": "one", "metric": "accuracy", "loss": 0.02, "share": 0.5}]
        >>> found = {"sqnr": noise, "sensitivity": loss, "costs": [], "exclude": ["fc"]}
        >>> print_layers(found, "leave fc in float", Console(width=80, color_system=None))
        <BLANKLINE>
                 weight   output               share of  int8  float
         layer  SQNR dB  SQNR dB  accumulated  the loss    ms     ms
         ────────────────────────────────────────────────────────────
         fc        41.3        -            -    100.0%     -      -
        <BLANKLINE>
         leave fc in float
         qconfig: {exclude: ["fc"]}
    """
    console = wide_enough(console)
    console.print(layer_table(found["sqnr"], found["sensitivity"], found["costs"]))
    lines = [f" {line}" for line in proposal.splitlines()]
    if found["exclude"]:
        lines.append(f" qconfig: {{exclude: {json.dumps(found['exclude'])}}}")
    console.print(Text("\n".join(lines)))


def write_layers(
    directory: str | os.PathLike[str], found: Mapping[str, Any], excluded: Sequence[str] = ()
) -> list[Path]:
    """Write ``analysis.json`` and, if matplotlib is installed, ``sqnr.png`` and ``sensitivity.png``.

    Args:
        directory: is made.
        found: as for :func:`print_layers`.
        excluded: layers that are proposed to stay in float.

    Returns:
        the files.

    Example:
        >>> import tempfile
        >>> loss = [{"layer": "fc", "direction": "one", "metric": "accuracy", "loss": 0.02, "share": 0.5}]
        >>> noise = [{"name": "fc", "kind": "weight", "sqnr_db": 41.26}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in write_layers(folder, {"sqnr": noise, "sensitivity": loss})]
        ['analysis.json', 'sqnr.png', 'sensitivity.png']
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "analysis.json"]
    files[0].write_text(json.dumps(_without_infinity(found), indent=1) + "\n", encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is not None:
        figures = {
            "sqnr.png": plot_sqnr(found["sqnr"]),
            "sensitivity.png": plot_sensitivity(found["sensitivity"], top=30, excluded=excluded),
        }
        for name, figure in figures.items():
            figure.savefig(folder / name, dpi=144)
            files.append(folder / name)
    return files


def _without_infinity(value: Any) -> Any:
    """JSON has no infinity, which is the SQNR of what is exact: null."""
    if isinstance(value, Mapping):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinity(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
