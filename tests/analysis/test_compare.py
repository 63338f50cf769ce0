import copy
import uuid

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassF1Score

from lq.analysis import compare as package_compare
from lq.analysis.compare import compare
from lq.analysis.model_table import CompareOptions
from lq.backends.prepare import prepare, set_phase
from lq.config.qconfig import QConfig
from lq.config.specs import WeightSpec
from lq.export.artifact.remote import upload
from tests.analysis.planted import make_batches, make_planted
from tests.tiny import Tiny, make_trainer, qat, quicken_deployment, train_loader, val_loader

QUICK = CompareOptions(seconds=0.02)


def names(rows):
    return [row["model"] for row in rows]


def test_the_table_of_the_tutorial():
    """Per-tensor PTQ loses what the planted layer holds; per-channel PTQ and QAT lose little."""
    batches, model = make_batches(), make_planted()
    trained = prepare(copy.deepcopy(model))
    set_phase(trained, fake_quant=True, observer=True, freeze_bn=True)
    for x, _ in batches:
        trained.train()(x)
    rows = compare(model, batches, batches, qat=trained, options=QUICK)
    assert names(rows) == [
        "FP32", "PTQ per-tensor MinMax", "PTQ per-channel histogram", "PTQ histogram, bias corrected",
        "QAT, fake-quantized", "QAT int8",
    ]  # fmt: skip
    accuracy = {row["model"]: row["metrics"]["accuracy"] for row in rows}
    assert accuracy["FP32"] == 1.0
    assert accuracy["PTQ per-tensor MinMax"] < 0.7
    assert accuracy["PTQ per-channel histogram"] > accuracy["PTQ per-tensor MinMax"] + 0.2
    assert accuracy["QAT int8"] == pytest.approx(accuracy["QAT, fake-quantized"], abs=0.03)
    by_name = {row["model"]: row for row in rows}
    assert "latency_ms" not in by_name["QAT, fake-quantized"]
    assert all(row["latency_ms"] > 0 and row["size_mb"] > 0 for row in rows if row["model"] != "QAT, fake-quantized")
    assert by_name["QAT int8"]["agreement"] > 0.95
    assert not trained.training or trained.qat_state.observer  # its phase is what it was


def test_the_models_are_left_as_they_were():
    model, batches = make_planted().train(), make_batches(1)
    before = copy.deepcopy(model.state_dict())
    compare(model, batches, batches, options=QUICK)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("is_local", [True, False])
def test_an_artifact_is_judged_in_its_own_runtime(tmp_path, is_local, monkeypatch):
    quicken_deployment(monkeypatch)
    module = Tiny()
    trainer = make_trainer(tmp_path, callback := qat(), max_epochs=2)
    float_model = copy.deepcopy(module.model)
    trainer.fit(module, train_loader(), val_loader())
    url = f"memory://{uuid.uuid4().hex}/int8"
    upload(callback.deployment.directory, url)
    rows = compare(
        float_model,
        train_loader(),
        val_loader(),
        qat=module.model,
        artifact=callback.deployment.directory if is_local else url,
        options=QUICK,
    )
    assert names(rows)[-2:] == ["QAT, fake-quantized", "QAT int8, torch"]
    assert rows[-1]["sqnr_db"] > 30
    assert rows[-1]["size_mb"] == pytest.approx(
        (callback.deployment.directory / "int8.pt").stat().st_size / 1e6, rel=0.01
    )
    accuracy = callback.deployment.results["torch"]["accuracy"]
    assert rows[-1]["metrics"] == pytest.approx({"accuracy": accuracy})


def test_dynamic_quantization_is_a_row_where_it_applies():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(8, 64, batch_first=True), nn.Linear(64, 3)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    model, x = Tagger().eval(), torch.randn(32, 5, 8)
    rows = {row["model"]: row for row in compare(model, [x], [(x, model(x).argmax(1))], options=QUICK)}
    assert rows["PTQ dynamic"]["size_mb"] < 0.5 * rows["FP32"]["size_mb"]
    assert rows["PTQ dynamic"]["metrics"]["accuracy"] > 0.9


def test_metric_data_and_other_models_can_be_chosen():
    model, batches = make_planted(), [{"image": x, "label": y} for x, y in make_batches(2)]
    options = CompareOptions(
        metric=MulticlassF1Score(4),
        call=lambda model, batch: model(batch["image"]),
        calibration=1,
        limit=1,
        others={"constant": lambda x: torch.eye(4)[torch.zeros(len(x), dtype=torch.long)]},
        seconds=0.02,
    )
    rows = compare(model, batches, batches, options=options)
    assert rows[-1]["model"] == "constant"
    assert rows[-1]["metrics"]["f1_score"] < 0.5
    assert rows[0]["metrics"]["f1_score"] == 1.0
    assert rows[-1]["size_mb"] is None


def test_coarse_weights_are_used_for_every_kind_of_ptq():
    batches = make_batches(1)
    rows = compare(make_planted(()), batches, batches, QConfig(weight=WeightSpec(-1, 1)), options=QUICK)
    assert all(row["metrics"]["accuracy"] < 0.99 for row in rows[1:])


@pytest.mark.parametrize(
    ("calibration", "test", "call", "message"),
    [
        ([], make_batches(1), None, "no batch"),
        (make_batches(1), [], None, "no batch"),
        (make_batches(1), make_batches(1), lambda model, batch: batch[0], "was not called for the first batch"),
    ],
)
def test_data_that_cannot_be_used_are_refused(calibration, test, call, message):
    with pytest.raises(ValueError, match=message):
        compare(make_planted(), calibration, test, options=CompareOptions(call=call, seconds=0.02))


def test_it_is_public():
    assert package_compare is compare
