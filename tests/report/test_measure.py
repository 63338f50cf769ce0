import re

import torch

from lq.analysis.model_table import CompareOptions
from lq.ptq import prepare_static
from lq.report.measure import machine, measure
from lq.report.page import write_page
from tests.analysis.planted import BAD, PER_TENSOR, make_batches, make_planted
from tests.report.plots.test_training import HISTORY

QUICK = CompareOptions(seconds=0.02)


def test_the_page_holds_everything_about_the_qat_model(tmp_path):
    batches, model = make_batches(2), make_planted()
    qat = prepare_static(model, batches, PER_TENSOR)
    findings = measure(model, batches, batches, PER_TENSOR, qat, history=HISTORY, options=QUICK)
    assert [row["model"] for row in findings.comparison][-2:] == ["QAT, fake-quantized", "QAT int8"]
    assert max(findings.sensitivity, key=lambda row: row["loss"])["layer"] == BAD
    assert BAD in findings.exclusions
    assert findings.sqnr[-1]["int8_db"] is not None
    assert "int8 [-127, 127] per tensor" in findings.plan
    text = write_page(tmp_path / "report.html", "Planted", findings).read_text()
    assert len(re.findall("<h2>", text)) == 6


def test_without_a_qat_model_the_calibrated_one_is_looked_into():
    batches = make_batches(1)
    findings = measure(make_planted(()), batches, batches, options=QUICK)
    assert "uint8 [0, 255] affine, histogram" in findings.plan
    assert not any(row["model"].startswith("QAT") for row in findings.comparison)


def test_batches_are_cut_and_calls_are_used():
    seen = []

    def call(model, batch):
        seen.append(len(batch["image"]))
        return model(batch["image"])

    batches = [{"image": x, "label": y} for x, y in make_batches(3)]
    options = CompareOptions(call=call, calibration=1, limit=2, seconds=0.02)
    findings = measure(make_planted(()), batches, iter(batches), options=options)
    assert "Judged on 2 batches." in findings.notes
    assert seen


def test_the_machine_is_named():
    text = machine(2)
    assert "2 threads on " in text
    assert f"PyTorch {torch.__version__}." in text
    assert machine(1).startswith("Latency of one sample with 1 thread on ")
