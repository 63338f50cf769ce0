import re

import pytest
import torch

from lq.analysis import propose_exclusions, range_statistics, sensitivity, sqnr_per_layer
from lq.backends.prepare import plan_of
from lq.ptq import prepare_static
from lq.report.page import Findings, write_page, write_picture
from tests.analysis.planted import BAD, PER_TENSOR, make_batches, make_planted
from tests.report.plots.test_training import HISTORY

COMPARISON = [
    {"model": "FP32", "metrics": {"accuracy": 0.916}, "size_mb": 14.0, "latency_ms": 9.0, "threads": 1},
    {"model": "QAT int8", "metrics": {"accuracy": 0.9}, "size_mb": 3.6, "recovered": 0.937, "sqnr_db": 45.04},
]


def headings(path):
    return re.findall(r"<h2>(.*?)</h2>", path.read_text())


def test_everything_that_is_known_has_its_section(tmp_path):
    batches = make_batches(1)
    prepared = prepare_static(make_planted(), batches, PER_TENSOR)
    rows = sensitivity(prepared, batches)
    proposal = propose_exclusions(rows)
    findings = Findings(
        comparison=COMPARISON,
        history=HISTORY,
        sqnr=sqnr_per_layer(prepared, batches, int8=True),
        sensitivity=rows,
        exclusions=str(proposal),
        excluded=proposal.layers,
        ranges=range_statistics(prepared, batches),
        plan=str(plan_of(prepared)),
        notes="Made by a test.",
    )
    path = write_page(tmp_path / "report.html", "Planted", findings)
    assert headings(path) == [
        "Comparison", "Training", "Noise, tensor by tensor", "Sensitive layers", "Ranges", "Plan"
    ]  # fmt: skip
    text = path.read_text()
    assert text.count("<img") == 7  # models, trade-off; metric, learning rate, scales; SQNR; sensitivity
    assert f"exclude {BAD} " in text
    assert "Made by a test." in text
    for cell in ("0.9160", "14.00", "94%", "45.0"):
        assert f">{cell}</td>" in text


def test_sections_without_rows_are_left_out(tmp_path):
    path = write_page(
        tmp_path / "report.html", "x", Findings(comparison=[{"model": "FP32", "metrics": {"accuracy": 1.0}}])
    )
    assert headings(path) == ["Comparison"]
    assert "<img" not in path.read_text()
    assert headings(write_page(path, "x", Findings(plan="fc  Linear"))) == ["Plan"]
    assert headings(write_page(path, "x", Findings(history=[{"epoch": 0.0, "loss": 1.0}], plan="p"))) == ["Plan"]


@pytest.mark.parametrize(("threads", "shown"), [((1, 1), False), ((1, 4), True)])
def test_threads_have_a_column_where_they_differ(tmp_path, threads, shown):
    rows = [{**row, "latency_ms": 1.0, "threads": count} for row, count in zip(COMPARISON, threads, strict=True)]
    text = write_page(tmp_path / "report.html", "x", Findings(comparison=rows)).read_text()
    assert (">threads</th>" in text) == shown


def test_figures_that_say_the_same_are_one_column(tmp_path):
    rows = [{**row, "metrics": {"val_acc": n / 4, "accuracy": n / 4, "loss": 0.3}} for n, row in enumerate(COMPARISON)]
    text = write_page(tmp_path / "report.html", "x", Findings(comparison=rows)).read_text()
    assert ">val_acc</th>" in text
    assert ">loss</th>" in text
    assert ">accuracy</th>" not in text


def test_one_picture_for_a_readme(tmp_path):
    loss = [{"layer": "fc", "direction": "one", "metric": "accuracy", "loss": 0.02, "share": 0.5}]
    path = write_picture(tmp_path / "docs" / "x.png", "Net", Findings(comparison=COMPARISON, sensitivity=loss))
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no rows"):
        write_picture(path, "Net", Findings(comparison=COMPARISON))


def test_nothing_to_show_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no sections"):
        write_page(tmp_path / "report.html", "x", Findings())


def test_the_figures_are_not_kept(tmp_path):
    from matplotlib import _pylab_helpers

    torch.manual_seed(0)
    write_page(tmp_path / "report.html", "x", Findings(comparison=COMPARISON))
    assert not _pylab_helpers.Gcf.get_all_fig_managers()
