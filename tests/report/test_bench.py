from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from lq.report.bench import print_bench


def row(model: str, size: int, latency: float, **changes: Any) -> dict[str, Any]:
    return {
        "model": model, "batch_size": size, "latency_ms": latency, "iqr_ms": 0.1, "per_second": 1000 * size / latency,
        "speedup": 8.0 / latency, "size_mb": 3.5, "threads": 1, **changes,
    }  # fmt: skip


def printed(rows: list[dict[str, Any]], *notes: str) -> list[list[str]]:
    text = StringIO()
    print_bench(rows, notes, Console(file=text, color_system=None))
    return [line.split() for line in text.getvalue().splitlines()]


def test_one_line_a_model_with_columns_for_each_batch_size() -> None:
    lines = printed([row("fp32", 1, 8.0), row("int8", 1, 2.0), row("fp32", 16, 80.0, speedup=1.0)], "int8 is good")
    assert ["fp32", "3.50", "8.00", "±", "0.10", "125", "1.00x", "80.00", "±", "0.10", "200", "1.00x"] in lines
    assert ["int8", "3.50", "2.00", "±", "0.10", "500", "4.00x", "-", "-", "-"] in lines
    assert ["int8", "is", "good"] in lines
    assert any(line[:2] == ["1", "thread;"] for line in lines)


def test_absent_values_are_dashes() -> None:
    lines = printed([row("int8", 1, 2.0, speedup=None, size_mb=None)])
    assert ["int8", "-", "2.00", "±", "0.10", "500", "-"] in lines
