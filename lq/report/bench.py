"""The table of ``lq bench``: size, latency and throughput of every model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from lq.console import wide_enough
from lq.report.table import ABSENT, number


def bench_table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    r"""Lay measurements out, one model a line, with three columns for each batch size.

    Args:
        rows: as :class:`lq.timing.bench.Benchmark` has them.
        title: line above the table.

    Returns:
        the table: size in MB, and for each batch size the median latency in ms, how many samples a second that is, and
        how much faster than eager float.

    Example:
        >>> row = {"model": "int8 onnx", "batch_size": 1, "latency_ms": 2.5, "iqr_ms": 0.1, "per_second": 400.0,
        ...        "speedup": 4.0, "size_mb": 3.5, "threads": 1}
        >>> [column.header for column in bench_table([row, {**row, "batch_size": 16}]).columns]
        ['model', 'size\nMB', 'batch 1\nms', '\nper second', '\nspeed-up', 'batch 16\nms', '\nper second', '\nspeed-up']
    """
    batches = sorted({row["batch_size"] for row in rows})
    columns = [Column("model", no_wrap=True, style="cyan"), Column("size\nMB", justify="right")]
    for size in batches:
        columns += [
            Column(f"batch {size}\nms", justify="right", no_wrap=True),
            Column("\nper second", justify="right", no_wrap=True),
            Column("\nspeed-up", justify="right", no_wrap=True),
        ]
    threads = sorted({row["threads"] for row in rows})
    plural = "" if threads == [1] else "s"
    against = " speed-up over eager float;" if any(row["speedup"] is not None for row in rows) else ""
    caption = f"{', '.join(map(str, threads))} thread{plural};{against} median and quartile range"
    table = Table(
        *columns, title=title, caption=caption, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0)
    )
    table.caption_justify = "left"
    by_model: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        by_model.setdefault(row["model"], {})[row["batch_size"]] = row
    for model, found in by_model.items():
        size_mb = next(iter(found.values()))["size_mb"]
        cells = [model, number(size_mb, ".2f")]
        for size in batches:
            cells += _cells(found.get(size))
        table.add_row(*map(Text, cells))
    return table


def print_bench(rows: Sequence[Mapping[str, Any]], notes: Sequence[str], console: Console | None = None) -> None:
    """Print the table and what to know of it; lines in a log are never broken.

    Example:
        >>> row = {"model": "int8 onnx", "batch_size": 1, "latency_ms": 2.5, "iqr_ms": 0.1, "per_second": 400.0,
        ...        "speedup": None, "size_mb": 3.5, "threads": 1}
        >>> print_bench([row], ["int8 onnx runs in float: head"], Console(width=80, color_system=None))
        <BLANKLINE>
                    size      batch 1
         model        MB           ms  per second  speed-up
         ───────────────────────────────────────────────────
         int8 onnx  3.50  2.50 ± 0.10         400         -
        <BLANKLINE>
        1 thread; median and quartile range
         int8 onnx runs in float: head
    """
    console = wide_enough(console)
    console.print(bench_table(rows))
    for note in notes:
        console.print(Text(f" {note}"))


def _cells(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return [ABSENT] * 3
    speedup = row["speedup"]
    return [
        f"{row['latency_ms']:.2f} ± {row['iqr_ms']:.2f}",
        f"{row['per_second']:.0f}",
        ABSENT if speedup is None else f"{speedup:.2f}x",
    ]
