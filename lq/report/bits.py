"""What ``lq bits`` prints and writes."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from lq.console import wide_enough
from lq.report.plots.bits import plot_frontier
from lq.report.table import number

Row = Mapping[str, Any]


def frontier_table(rows: Sequence[Row], loss: str) -> Table:
    """A line for each choice of bits, the cheapest first; the chosen one and uniform bits have a name.

    Args:
        rows: from :class:`lq.analysis.bits.BitChoice`; those under a budget of time have latencies.
        loss: what the losses are.

    Example:
        >>> row = {"name": "chosen", "size_mb": 0.4, "effective_bits": 4.2, "expected": 2e-3, "measured": None}
        >>> [cell.plain for column in frontier_table([row], "KL divergence").columns for cell in column.cells]
        ['chosen', '0.400', '4.20', '0.002', '-']
    """
    timed = any(row.get("latency_ms") is not None for row in rows)
    headers = ["latency\nms"] * timed + ["size\nMB", "bits per\nweight", "expected\nloss", "measured\nloss"]
    caption = f"loss: {loss}" + ("\nlatency: expected where a line has no name" if timed else "")
    table = _table("weights", headers, caption)
    places = _decimals(max(row["size_mb"] for row in rows))
    for row in rows:
        costs = [f"{row['latency_ms']:.3f}"] if timed else []
        _add(table, row, [*costs, f"{row['size_mb']:.{places}f}", f"{row['effective_bits']:.2f}"])
    return table


def _decimals(largest: float) -> int:
    """How many decimals show three digits of the largest size, so that small models differ; at least three."""
    return max(3, 2 - math.floor(math.log10(largest))) if largest > 0 else 3


def activation_table(rows: Sequence[Row], loss: str) -> Table:
    """The same for activations.

    Args:
        rows: from :class:`lq.analysis.bits.choice.ActivationBits`.
        loss: what the losses are.

    Example:
        >>> rows = [{"name": "chosen", "bits": 3.97, "expected": 2e-3, "measured": 3e-3}]
        >>> activation_table(rows, "KL divergence").row_count
        1
    """
    headers = "bits per\nactivation", "expected\nloss", "measured\nloss"
    table = _table("activations", headers, f"loss: {loss}, weights in float")
    for row in rows:
        _add(table, row, [f"{row['bits']:.2f}"])
    return table


def _table(what: str, headers: Sequence[str], caption: str) -> Table:
    return Table(
        Column(f"\n{what}", no_wrap=True, style="cyan"),
        *(Column(header, justify="right", no_wrap=True) for header in headers),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption=caption,
        caption_justify="left",
    )


def _add(table: Table, row: Row, costs: Sequence[str]) -> None:
    cells = [row["name"], *costs, f"{row['expected']:.3g}", number(row["measured"], ".3g")]
    table.add_row(*map(Text, cells), style="bold" if row["name"] == "chosen" else None)


def print_bits(
    rows: Sequence[Row], loss: str, choice: str, console: Console | None = None, activations: Sequence[Row] = ()
) -> None:
    r"""Print the tables and the choice.

    Args:
        rows: of the weights.
        loss: what the losses are.
        choice: ``str`` of the choice.
        console: where to; None means standard output. The lines in a log file are never broken.
        activations: rows of the activations, if their bits were chosen.

    Example:
        >>> row = {"name": "chosen", "size_mb": 0.4, "effective_bits": 4.2, "expected": 2e-3, "measured": 3e-3}
        >>> print_bits([row], "KL divergence", "conv1: 8 bits, fc: 4 bits", Console(width=60, color_system=None))
        <BLANKLINE>
                   size  bits per  expected  measured
         weights     MB    weight      loss      loss
         ─────────────────────────────────────────────
         chosen   0.400      4.20     0.002     0.003
        <BLANKLINE>
        loss: KL divergence
         conv1: 8 bits, fc: 4 bits
    """
    console = wide_enough(console)
    console.print(frontier_table(rows, loss))
    if activations:
        console.print(activation_table(activations, loss))
    console.print(Text("\n".join(f" {line}" for line in choice.splitlines())), soft_wrap=True)


def write_bits(
    directory: str | os.PathLike[str],
    settings: Mapping[str, Any],
    rows: Sequence[Row],
    loss: str,
    about: str,
    activations: Sequence[Row] = (),
) -> list[Path]:
    """Write the qconfig as YAML, the frontier as JSON, and as a picture if matplotlib is installed.

    Args:
        directory: is made.
        settings: of a QConfig, from :meth:`lq.analysis.bits.BitChoice.settings`.
        rows: of the weights.
        loss: what the losses are.
        about: a line for the head of the YAML file.
        activations: rows of the activations, if their bits were chosen.

    Returns:
        the files: bits.yaml, frontier.json, frontier.png.

    Example:
        >>> import tempfile
        >>> rows = [{"name": "chosen", "size_mb": 0.4, "effective_bits": 4.2, "expected": 2e-3, "measured": 3e-3}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = write_bits(folder, {"preset": "portable"}, rows, "KL divergence", "size=0.4MB")
        ...     print(files[0].read_text(encoding="utf-8"))
        # size=0.4MB
        # A qconfig: QATCallback(qconfig=...)
        {preset: portable}
        >>> [path.name for path in files]
        ['bits.yaml', 'frontier.json', 'frontier.png']
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "bits.yaml", folder / "frontier.json"]
    text = yaml.safe_dump(dict(settings), sort_keys=False, default_flow_style=None, width=120)
    files[0].write_text(f"# {about}\n# A qconfig: QATCallback(qconfig=...)\n{text}", encoding="utf-8")
    data: dict[str, Any] = {"loss": loss, "rows": list(rows)}
    if activations:
        data["activations"] = list(activations)
    files[1].write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is not None:
        files.append(folder / "frontier.png")
        plot_frontier(rows, loss, activations).savefig(files[-1], dpi=144)
    return files
