"""What the benchmarks share: options, turns, ratios, tables and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

Work = Callable[[], Any]
Row = dict[str, Any]

_TURN_SECONDS = 0.1
_MOST_REPEATS = 100
_ABSENT = "-"


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one piece of work (median), and quartiles of its ratio to the baseline, pair by pair."""

    ms: float
    low: float
    ratio: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float], baseline: Sequence[float]) -> Timing:
        """Compare the turns of one with those of the baseline; both lists in the order of the rounds."""
        ratios = [own / base for own, base in zip(seconds, baseline, strict=True)]
        low, median, high = quartiles(ratios)
        return cls(1e3 * statistics.median(seconds), low, median, high)

    def row(self) -> Row:
        """For tables and JSON."""
        return {"ms": self.ms, "ratio": self.ratio, "q1": self.low, "q3": self.high}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile; of one value, that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def compare(works: Mapping[str, Work], baselines: Mapping[str, str], options: argparse.Namespace) -> dict[str, Timing]:
    """Time every work against the baseline that belongs to it, in one interleaved run."""
    seconds = take_turns(works, options.rounds, torch.device(options.device))
    return {name: Timing.of(seconds[name], seconds[baselines[name]]) for name in works}


def take_turns(works: Mapping[str, Work], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds per call of every work, one entry a round; each round goes through all works, every second one backwards.

    A turn is one call that is not timed, because the caches hold what the others used, and as many timed ones as
    take about a tenth of a second, without waiting for the device in between.
    """
    repeats = {name: _repeats(work, device) for name, work in works.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds):
        for name in list(works)[:: -1 if turn % 2 else 1]:
            works[name]()
            seconds[name].append(_timed(works[name], repeats[name], device))
    return seconds


def _repeats(work: Work, device: torch.device) -> int:
    for _ in range(2):
        work()
    return max(1, min(_MOST_REPEATS, round(_TURN_SECONDS / _timed(work, 1, device))))


def _timed(work: Work, repeats: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def parser(description: str, rounds: int | None) -> argparse.ArgumentParser:
    """The options that every benchmark has, so that all can be called alike; ``rounds`` is None if it times nothing."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    result.add_argument("--threads", type=_positive, default=1, help="CPU threads of PyTorch (default: 1)")
    result.add_argument("--rounds", type=_positive, default=rounds, help=_about_rounds(rounds))
    result.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return result


def _about_rounds(rounds: int | None) -> str:
    return "has no effect here" if rounds is None else f"turns of each (default: {rounds})"


def parse(options: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the options, and set seed and threads as they say."""
    parsed = options.parse_args(arguments)
    if parsed.device.startswith("cuda") and not torch.cuda.is_available():
        options.error(f"--device {parsed.device}: this torch sees no GPU; leave the option out to use the CPU.")
    torch.set_num_threads(parsed.threads)
    torch.manual_seed(0)
    return parsed


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return value


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _ratio(value: float) -> str:
    """Two decimals, or two digits where these would show nothing."""
    return format(value, ".2f" if value >= 0.1 else ".2g")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        header: what stands above.
        keys: entries of the row that it shows; if one of them is absent, a dash.
        show: makes text of them.
        left: whether it is aligned to the left.
    """

    header: str
    keys: tuple[str, ...]
    show: Callable[..., str]
    left: bool = False

    def text(self, row: Row) -> str:
        """The cell of a row."""
        values = [row.get(key) for key in self.keys]
        return _ABSENT if None in values else self.show(*values)


def label(key: str, header: str) -> Column:
    """A column of text."""
    return Column(header, (key,), str, left=True)


def number(key: str, header: str, form: str) -> Column:
    """A column of numbers."""
    return Column(header, (key,), lambda value: format(value, form))


def ratio(key: str, header: str = "ratio") -> Column:
    """A column of ratios."""
    return Column(header, (key,), _ratio)


TIMING_COLUMNS = (
    number("ms", "ms", ".2f"),
    ratio("ratio"),
    Column("quartiles", ("q1", "q3"), lambda low, high: f"{_ratio(low)} to {_ratio(high)}"),
)


def report(title: str, columns: Sequence[Column], rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Print the rows as a table, grouped by the first column, and write them as JSON."""
    about = machine(torch.device(options.device))
    table = _table(columns, rows)
    table.title, table.caption = title, _describe(about)
    console = Console()
    if not console.is_terminal:  # a log has no width that a table must fit
        console.width = Measurement.get(console, console.options.update(width=10_000), table).maximum
    console.print(table)
    if options.json is not None:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        content = {"title": title, "machine": about, "settings": settings, "rows": list(rows)}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1, default=str) + "\n")


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(column.header, justify="left" if column.left else "right", no_wrap=True)
    last = None
    for row in rows:
        group, *cells = (column.text(row) for column in columns)
        if last not in (None, group):
            table.add_section()
        table.add_row("" if group == last else group, *cells)
        last = group
    return table


def _describe(about: Mapping[str, Any]) -> str:
    threads = f"{about['threads']} thread" + ("" if about["threads"] == 1 else "s")
    return f"{about['gpu'] or about['cpu']}, {threads}, load {about['load']}, torch {about['torch']}"
