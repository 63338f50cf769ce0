"""The life of a QAT run under every backend: train, export, save, load, resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lq.backends.prepare import plan_of, qconfig_of
from lq.backends.pt2e import choice
from lq.callback import QATCallback
from lq.checkpoints.checkpoint import load_checkpoint
from lq.config.qconfig import QConfig
from lq.config.schedule import QATSchedule
from lq.export.artifact.int8_model import load
from lq.export.artifact.manifest import read_manifest
from lq.models.annotated import AnnotatedMobileNetV2
from tests.callback.conftest import Fit
from tests.tiny import Tiny, keeper, make_data, make_trainer, train_loader, val_loader

pytest.importorskip("torchao")

BACKENDS = {
    "eager": QConfig(backend="eager"),
    "x86_inductor": QConfig(backend="pt2e", quantizer="x86_inductor"),
    "xnnpack": QConfig(backend="pt2e", quantizer="xnnpack", exclude=("classifier.*",)),
}


class Annotated(Tiny):
    def __init__(self) -> None:
        super().__init__(lr=0.02)
        self.model = AnnotatedMobileNetV2(4, 3)
        self.model.classifier[0].p = 0.0  # resumed, random numbers would differ
        self.example_input_array = torch.zeros(1, 1, 6, 6)


def callback(name: str, exporters: Any = ("torch",)) -> QATCallback:
    schedule = QATSchedule(start="2 steps", freeze_bn="3 steps", observer_off="4 steps", lr=None)
    return QATCallback(qconfig=BACKENDS[name], schedule=schedule, exporters=exporters)


def logits(module: Any) -> Tensor:
    with torch.no_grad():
        y: Tensor = module.eval()(make_data()[:][0])
    return y


EXPORTERS = {"eager": ("torch", "onnx", "openvino", "pt2"), "x86_inductor": ("pt2", "torch"), "xnnpack": ("torch",)}


@pytest.mark.parametrize("name", BACKENDS)
def test_from_training_to_artifact_and_back(fit: Fit, tmp_path: Path, name: str, monkeypatch: Any) -> None:
    module, qat = Annotated(), callback(name, EXPORTERS[name])
    keys = list(module.state_dict())
    trainer = fit(module, qat, keeper(tmp_path / "kept"))
    assert qat.deployment is not None
    assert set(qat.deployment.parity) == set(EXPORTERS[name])
    assert [key for key in module.state_dict() if "qat_state" not in key] == keys
    directory = Path(trainer.log_dir or "") / "int8"
    for kind in EXPORTERS[name]:
        agreement = load(directory, kind)(make_data()[:][0]).argmax(1) == logits(module).argmax(1)
        assert agreement.float().mean() > 0.9
    manifest = read_manifest(directory)
    assert manifest["qconfig"]["backend"] == BACKENDS[name].backend

    monkeypatch.setattr(choice, "annotate", None)  # a checkpoint holds what the quantizer wanted
    fresh: Any = load_checkpoint(tmp_path / "kept" / "last.ckpt", Annotated())
    assert torch.equal(logits(fresh), logits(module))
    assert plan_of(fresh.model) == plan_of(module.model)
    assert qconfig_of(fresh.model) == BACKENDS[name]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("name", ["eager", "x86_inductor"])
def test_resumed_it_goes_on_bit_for_bit(fit: Fit, tmp_path: Path, name: str) -> None:
    whole, parts = Annotated(), Annotated()
    parts.load_state_dict(whole.state_dict())
    fit(whole, callback(name), max_epochs=3)
    fit(parts, callback(name), keeper(tmp_path / "kept"), max_epochs=2)
    resumed = Annotated()
    fit(resumed, callback(name), keeper(tmp_path / "again"), max_epochs=3, ckpt_path=tmp_path / "kept" / "last.ckpt")
    ours, theirs = whole.state_dict(), resumed.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if isinstance(ours[key], Tensor))


def test_a_target_without_stubs_is_refused(fit: Fit) -> None:
    with pytest.raises(ValueError, match="Sequential calls no QuantStub"):
        fit(Tiny(), callback("eager"))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_pt2e_looks_for_an_example_where_there_is_none(fit: Fit, tmp_path: Path, monkeypatch: Any) -> None:
    module = Tiny()
    fit(module, callback("x86_inductor"), keeper(tmp_path / "kept"), max_epochs=2)
    path = tmp_path / "kept" / "last.ckpt"
    monkeypatch.setattr(choice, "annotate", None)

    def test(name: str) -> Tiny:
        tested, trainer = Tiny(), make_trainer(tmp_path, callback(name), keeper(tmp_path / "unused"))
        trainer.test(tested, val_loader(), ckpt_path=path, verbose=False)
        return tested

    assert plan_of(test("x86_inductor").model) == plan_of(module.model)
    with pytest.raises(ValueError, match="prepared with another qconfig"):
        test("xnnpack")


def test_pt2e_asks_for_an_example(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"self\.example_input_array = torch\.rand"):
        make_trainer(tmp_path, callback("x86_inductor"), limit_val_batches=0).fit(Tiny(), train_loader(), val_loader())


def test_pt2e_from_yaml(run_lq: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    qconfig = {"backend": "pt2e", "quantizer": "x86_inductor"}
    config = {
        "trainer": {
            "accelerator": "cpu",
            "fast_dev_run": True,
            "callbacks": [{"class_path": "lq.QATCallback", "init_args": {"qconfig": qconfig}}],
        },
        "model": {"class_path": "lq.models.DigitsClassifier", "init_args": {"width": 4}},
        "data": {"class_path": "lq.data.DigitsDataModule"},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    with caplog.at_level("INFO", "lightning.pytorch"):
        run_lq("fit", "--config", "run.yaml")
    assert "qconfig pt2e x86_inductor: 10 of 10 layers quantized" in caplog.text
