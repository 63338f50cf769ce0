"""The table at the end of a run: what quantization cost and what it bought."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from lq.console import wide_enough

Row = Mapping[str, Any]

ROW_KEYS = ("model", "metrics", "size_mb", "latency_ms", "threads", "recovered", "agreement", "sqnr_db")

ABSENT = "-"
_WORTH_SAYING = 1.05  # below that a ratio is noise


def number(value: float | None, form: str) -> str:
    """A figure in a table, or what stands there for one that is not known.

    Example:
        >>> number(0.51, ".0%"), number(None, ".2f")
        ('51%', '-')
    """
    return ABSENT if value is None else format(value, form)


def comparison_table(rows: Sequence[Row], title: str | None = None, *, transposed: bool = False) -> Table:
    """Lay rows out as a table, one model a line.

    Args:
        rows: mappings with ``"model"`` (its name) and any of ``"metrics"`` (name to value), ``"size_mb"``
            (MB), ``"latency_ms"`` (ms), ``"threads"`` (of the latency), ``"recovered"`` (share of
            the loss of post-training quantization, a column only if some row has it), ``"agreement"`` (in [0, 1]) and
            ``"sqnr_db"`` (dB). What is absent or None becomes a dash; ratios are taken against the first row. Of
            metrics that are the same in every row, such as two accuracies, the first stands for all.
        title: line above the table.
        transposed: one model a column instead, which is narrower when there are many metrics.

    Returns:
        The table, with the ratios as its caption.

    Raises:
        ValueError: if there are no rows, or one has no name or an unknown key.

    Example:
        >>> rows = [
        ...     {"model": "FP32", "metrics": {"accuracy": 0.9171}, "size_mb": 14.0},
        ...     {"model": "QAT int8", "metrics": {"accuracy": 0.9165}, "size_mb": 3.5, "sqnr_db": 41.2},
        ... ]
        >>> print_table(rows, Console(width=80, color_system=None))
        <BLANKLINE>
                              size  latency             SQNR
         model     accuracy     MB       ms  agreement    dB
         ────────────────────────────────────────────────────
         FP32        0.9171  14.00        -          -     -
         QAT int8    0.9165   3.50        -          -  41.2
        <BLANKLINE>
         QAT int8: 4.0x smaller than FP32
    """
    _check(rows)
    threads = sorted({row["threads"] for row in rows if row.get("threads") is not None})
    names = distinct_metrics(rows)
    headers = ["\nmodel", *(f"\n{name}" for name in names)]
    headers += ["size\nMB", f"latency\n{_unit(threads)}"]
    show_recovered = any(row.get("recovered") is not None for row in rows)
    headers += ["gap\nrecovered"] * show_recovered + ["\nagreement", "SQNR\ndB"]
    grid = [headers, *([str(r["model"]), *_cells(r, names, len(threads) > 1, show_recovered)] for r in rows)]
    if transposed:
        grid[0] = [header.strip().replace("\n", " ") for header in headers]
        grid = [list(line) for line in zip(*grid, strict=True)]
    table = Table(
        *(Column(header, justify="right", no_wrap=True) for header in map(Text, grid[0])),
        title=title,
        title_justify="left",
        caption=_ratios(rows),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.columns[0].justify, table.columns[0].style = "left", "cyan"
    for line in grid[1:]:
        table.add_row(*map(Text, line))  # plain text: a "[" in a name is no markup
    return table


def print_table(rows: Sequence[Row], console: Console | None = None, title: str | None = None) -> None:
    """Print :func:`comparison_table`, transposed where it would be wider than the console and that makes it narrower.

    Args:
        rows: as for :func:`comparison_table`.
        console: where to; None means standard output. The lines in a log file are never broken.
        title: line above the table.

    Raises:
        ValueError: as for :func:`comparison_table`.

    Example:
        >>> rows = [{"model": name, "metrics": {"accuracy": 0.9}, "size_mb": 14.0} for name in ("FP32", "QAT int8")]
        >>> print_table(rows, Console(width=30, color_system=None))  # too narrow for the columns of comparison_table
        <BLANKLINE>
         model         FP32  QAT int8
         ─────────────────────────────
         accuracy    0.9000    0.9000
         size MB      14.00     14.00
         latency ms       -         -
         agreement        -         -
         SQNR dB          -         -
        <BLANKLINE>
    """
    console = console or Console()
    table = comparison_table(rows, title)
    if _width(table, console) > console.width:
        table = min(table, comparison_table(rows, title, transposed=True), key=lambda one: _width(one, console))
    wide_enough(console, _width(table, console)).print(table)


def distinct_metrics(rows: Sequence[Row]) -> list[str]:
    """The names of the metrics, without those whose figures another one has already.

    Example:
        >>> distinct_metrics([{"model": "FP32", "metrics": {"val_acc": 0.9, "accuracy": 0.9, "val_loss": 0.3}}])
        ['val_acc', 'val_loss']
    """
    found: dict[str, list[float | None]] = {}
    for name in dict.fromkeys(name for row in rows for name in row.get("metrics") or {}):
        column = [(row.get("metrics") or {}).get(name) for row in rows]
        if not any(_same(column, other) for other in found.values()):
            found[name] = column
    return list(found)


def _same(one: Sequence[float | None], other: Sequence[float | None]) -> bool:
    return all(
        a is b if a is None or b is None else math.isclose(a, b, rel_tol=1e-5) for a, b in zip(one, other, strict=True)
    )


def _width(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(width=10_000), table).maximum


def _check(rows: Sequence[Row]) -> None:
    if not rows:
        raise ValueError("rows is empty; give at least one, e.g. {'model': 'FP32', 'size_mb': 14.0}.")
    for row in rows:
        unknown = sorted(set(row) - set(ROW_KEYS))
        if unknown or "model" not in row:
            problem = f"unknown keys {unknown}" if unknown else "no 'model'"
            raise ValueError(f"row {dict(row)!r} has {problem}; the keys are {', '.join(ROW_KEYS)}.")


def _unit(threads: Sequence[int]) -> str:
    if len(threads) != 1:
        return "ms (threads)" if threads else "ms"
    return f"ms, {threads[0]} thread" + ("" if threads[0] == 1 else "s")


def _cells(row: Row, names: Sequence[str], show_threads: bool, show_recovered: bool) -> list[str]:
    metrics = row.get("metrics") or {}
    latency = number(row.get("latency_ms"), ".2f")
    if show_threads and row.get("threads") is not None:
        latency += f" ({row['threads']})"
    cells = [*(_metric(metrics.get(name)) for name in names), number(row.get("size_mb"), ".2f"), latency]
    if show_recovered:
        cells.append(_share(row.get("recovered"), ".0f"))
    return [*cells, _share(row.get("agreement"), ".2f"), number(row.get("sqnr_db"), ".1f")]


def _share(value: float | None, form: str) -> str:
    return ABSENT if value is None else f"{100 * value:{form}} %"


def _metric(value: float | None) -> str:
    return number(value, ".4f" if value is not None and abs(value) < 1000 else ".5g")


def _ratios(rows: Sequence[Row]) -> Text | None:
    first = rows[0]
    lines = []
    for row in rows[1:]:
        hints = [
            hint
            for key, less, more in (("size_mb", "smaller", "larger"), ("latency_ms", "faster", "slower"))
            if (hint := _ratio(first.get(key), row.get(key), less, more))
        ]
        if hints:
            lines.append(f" {row['model']}: {', '.join(hints)} than {first['model']}")
    return Text("\n".join(lines), style="default", no_wrap=True) if lines else None


def _ratio(before: float | None, after: float | None, less: str, more: str) -> str | None:
    if not before or not after:
        return None
    ratio, word = (before / after, less) if after < before else (after / before, more)
    return f"{ratio:.1f}x {word}" if ratio >= _WORTH_SAYING else None
