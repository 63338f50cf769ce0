import io

import pytest
from rich.console import Console

from lq.report.table import comparison_table, print_table

FP32 = {"model": "FP32", "metrics": {"accuracy": 0.9171}, "size_mb": 13.6, "latency_ms": 16.3, "threads": 1}
FAKE = {"model": "fake-quantized", "metrics": {"accuracy": 0.9165}}
INT8 = {
    "model": "QAT int8",
    "metrics": {"accuracy": 0.91649},
    "size_mb": 3.49,
    "latency_ms": 3.6,
    "threads": 1,
    "agreement": 0.99875,
    "sqnr_db": 41.26,
}
ROWS = [FP32, FAKE, INT8]
METRICS = {"accuracy": 0.9, "f1_score": 0.91, "calibration_error": 0.01, "cohen_kappa": 0.87, "auroc": 0.99}
WIDE = [{**row, "metrics": METRICS} for row in ROWS]


def render(rows, width=80, **kwargs):
    stream = io.StringIO()
    print_table(rows, Console(file=stream, width=width, **kwargs))
    return stream.getvalue()


def cells(text, name):
    words = name.split()
    return next(line.split() for line in text.splitlines() if line.split()[: len(words)] == words)


@pytest.mark.parametrize("width", [80, 120])
def test_every_figure_stands_in_its_line(width):
    text = render(ROWS, width)
    assert cells(text, "FP32") == ["FP32", "0.9171", "13.60", "16.30", "-", "-"]
    assert cells(text, "fake-quantized") == ["fake-quantized", "0.9165", "-", "-", "-", "-"]
    assert cells(text, "QAT int8")[:7] == ["QAT", "int8", "0.9165", "3.49", "3.60", "99.88", "%"]
    assert cells(text, "QAT int8")[7:] == ["41.3"]
    assert "ms, 1 thread " in text
    assert "QAT int8: 3.9x smaller, 4.5x faster than FP32" in text


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("rows", [ROWS, WIDE])
@pytest.mark.parametrize("terminal", [True, False])
def test_no_line_is_broken_or_cut(rows, width, terminal):
    text = render(rows, width, force_terminal=terminal, color_system=None)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    metrics = [f"{value:.4f}" for row in rows for value in row["metrics"].values()]
    for figure in ("13.60", "16.30", "99.88 %", "41.3", *metrics):
        assert figure in text


def test_many_metrics_turn_the_table_so_that_it_fits():
    text = render(WIDE, 80)
    assert cells(text, "model") == ["model", "FP32", "fake-quantized", "QAT", "int8"]
    assert cells(text, "calibration_error")[1:] == ["0.0100"] * 3
    assert cells(text, "latency ms, 1 thread")[4:] == ["16.30", "-", "3.60"]
    assert cells(render(WIDE, 160), "model")[:2] == ["model", "accuracy"]


def test_a_log_file_gets_whole_lines_however_narrow_it_claims_to_be():
    text = render(ROWS, 20)
    assert "…" not in text
    assert cells(text, "size MB") == ["size", "MB", "13.60", "-", "3.49"]


def test_the_width_of_the_console_is_left_as_it_was():
    console = Console(file=io.StringIO(), width=20)
    print_table(ROWS, console)
    assert console.width == 20


def test_colour_only_where_there_are_colours():
    assert "\x1b[" in render(ROWS, force_terminal=True, color_system="standard")
    assert "\x1b[" not in render(ROWS)


def test_an_ascii_log_can_hold_it():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_table(ROWS, Console(file=stream, width=80))
    stream.flush()
    assert b"QAT int8" in raw.getvalue()


def test_different_threads_stand_beside_their_latency():
    text = render([FP32, {**INT8, "threads": 4}])
    assert "ms (threads)" in text
    assert "16.30 (1)" in text
    assert "3.60 (4)" in text


def test_metrics_that_only_some_models_have():
    text = render([FP32, {"model": "QAT int8", "metrics": {"loss": 12345.678}}])
    assert cells(text, "FP32")[1:3] == ["0.9171", "-"]
    assert cells(text, "QAT int8")[2:4] == ["-", "12346"]


@pytest.mark.parametrize(
    ("row", "ratios"),
    [
        ({"model": "B", "size_mb": 27.2, "latency_ms": 8.15}, "B: 2.0x larger, 2.0x faster than FP32"),
        ({"model": "B", "latency_ms": 32.6}, "B: 2.0x slower than FP32"),
        ({"model": "B", "size_mb": 13.5, "latency_ms": 16.4}, None),
        ({"model": "B"}, None),
        ({"model": "B", "size_mb": 0, "latency_ms": 0}, None),
    ],
)
def test_ratios_worth_saying(row, ratios):
    caption = comparison_table([FP32, row]).caption
    assert (None if caption is None else caption.plain.strip()) == ratios


def test_names_are_no_markup_and_infinity_is_a_figure():
    text = render([{"model": "[bold]x[/bold]", "sqnr_db": float("inf")}])
    assert cells(text, "[bold]x[/bold]")[1:] == ["-", "-", "-", "inf"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows is empty; give at least one"),
        ([{"metrics": {}}], "has no 'model'; the keys are model, metrics,"),
        ([{"model": "FP32", "sqnr": 3}], r"unknown keys \['sqnr'\]; the keys are model"),
    ],
)
def test_impossible_rows_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        comparison_table(rows)


def test_the_recovered_gap_has_a_column_only_if_there_is_one():
    text = render([FP32, {**INT8, "recovered": 0.974}])
    assert "recovered" in text
    assert cells(text, "QAT int8")[5:7] == ["97", "%"]
    assert cells(text, "FP32")[4] == "-"
    assert "recovered" not in render([FP32, {**INT8, "recovered": None}])


def test_metrics_that_are_the_same_everywhere_stand_once():
    def with_metrics(*accuracies):
        return [
            {"model": str(i), "metrics": {"val/accuracy": a, "accuracy": b, "loss": 0.5}}
            for i, (a, b) in enumerate(accuracies)
        ]

    once = render(with_metrics((0.9, 0.9), (0.8, 0.8 + 1e-9)), 200)
    assert once.count("accuracy") == 1
    assert "val/accuracy" in once
    assert render(with_metrics((0.9, 0.9), (0.8, 0.81)), 200).count("accuracy") == 2
    assert render([{"model": "a", "metrics": {"x": 0.5}}, {"model": "b", "metrics": {"y": 0.5}}], 200).count("0.5") == 2
