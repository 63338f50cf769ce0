"""The benchmark of low bits: what is known is not run again, the rate is chosen on the validation split."""

import json
from pathlib import Path

import pytest

from benchmarks import low_bits
from benchmarks.low_bits import Run

pytest.importorskip("torchvision")

ROOT = Path(__file__).parents[2]

W4A4 = ["--models", "mobilenet_v2", "--grids", "W4A4", "--seeds", "2", "--rates", "0.01", "0.1"]


def known():
    """Results of every run that these options need: 0.1 is better on the validation split, 0.01 on the test images."""
    found = {Run("mobilenet_v2", "", "float"): (90.0, 91.0), Run("mobilenet_v2", "W4A4", "PTQ histogram"): (80.0, 81.0)}
    for rate, val, test in ((0.01, 85.0, 90.0), (0.1, 86.0, 87.0)):
        found |= {Run("mobilenet_v2", "W4A4", "QAT", 300, rate, seed): (val, test + 2 * seed) for seed in (0, 1)}
    return {run.key: {"val": val, "test": test} for run, (val, test) in found.items()}


def test_the_table_of_what_is_known(small_network, tmp_path, capsys):
    results, table, picture = (tmp_path / name for name in ("known.json", "table.md", "table.png"))
    results.write_text(json.dumps(known()))
    files = ["--results", str(results), "--markdown", str(table), "--picture", str(picture)]
    low_bits.main([*small_network, *W4A4, "--methods", "PTQ histogram", "QAT", *files])
    assert json.loads(results.read_text()) == known()
    assert table.read_text().splitlines() == [
        "| test accuracy, % | W4A4 |",
        "| --- | --- |",
        "| float | 91.00 |",
        "| PTQ histogram | 81.00 |",
        "| QAT | 88.00 ± 1.41 (70 %) |",
    ]
    assert picture.stat().st_size > 1000
    assert "gap recovered" in capsys.readouterr().out


def test_the_table_of_the_page_is_that_of_the_results_in_the_repository(tmp_path):
    table, methods = tmp_path / "table.md", [*low_bits.UNTRAINED, "QAT", "QAT distilled", "LSQ", "LSQ distilled"]
    options = ["--models", "mobilenet_v2", "--grids", "W4A8", "W4A4", "W3A3", "W2A8", "--rates", "0.01"]
    files = ["--results", str(ROOT / "benchmarks" / "low_bits.json"), "--markdown", str(table)]
    low_bits.main([*options, "--methods", *methods, *files])
    assert table.read_text() in (ROOT / "docs" / "low_bits.md").read_text()


@pytest.mark.filterwarnings("ignore:lq. QAT ended with")  # one step on noise
def test_a_run_is_trained_and_judged(small_network, tmp_path):
    options = ["--grids", "W4A4", "--steps", "1", "--rates", "0.01", "--methods", "PTQ histogram", "LSQ distilled"]
    rows = low_bits.main([*small_network, *options])
    assert [row["method"] for row in rows] == ["float", "PTQ histogram", "LSQ distilled"]
    trained = json.loads((tmp_path / "r.json").read_text())[Run("mobilenet_v2", "W4A4", "LSQ distilled", 1, 0.01).key]
    assert 0 <= trained["test"] <= 100
    assert 0 <= trained["ptq"] <= 100
