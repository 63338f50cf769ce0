"""Wrong uses, and what they get: an answer when the callback is made, or before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lq.analysis.auto_exclude import AutoExclude
from lq.callback import QATCallback
from lq.config.qconfig import LayerQConfig, QConfig
from lq.config.schedule import QATSchedule
from lq.config.specs import ActivationSpec, WeightSpec
from lq.export.parity.gate import Gate
from tests.callback.conftest import Fit
from tests.tiny import Tiny, make_data

NAN = float("nan")

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"target": 5}, "target=5 must be the dotted name"),
    ({"target": nn.Linear(2, 2)}, "target=<Linear> must be .* not the module itself"),
    ({"metric": "accuracy"}, "is not a torchmetrics metric"),
    ({"metric": {"class_path": "x"}}, "is not a torchmetrics metric"),
    ({"target_fn": "module.function"}, "is not a function"),
    ({"int8_every_n_epochs": "2"}, "'2' .* is not a whole number"),
    ({"int8_every_n_epochs": 0}, "must be at least 1"),
    ({"int8_every_n_epochs": 1.5}, "is not a whole number"),
    ({"int8_every_n_epochs": True}, "is not a whole number"),
    ({"export_dir": 5}, "export_dir=5 .* must be a path or a URL"),
    ({"export_dir": ""}, "export_dir='' .* must be a path or a URL"),
    ({"export_dir": ["a"]}, "must be a path or a URL"),
    ({"exporters": "onnx"}, r"must be a list; write \['onnx'\]"),
    ({"exporters": []}, "would leave no model"),
    ({"exporters": [{}]}, "exporter {} must be a name"),
    ({"exporters": None}, "must be a list of names"),
    ({"exporters": {"onnx": {}}}, r"must be a list of names; write \[\{'onnx': \{\}\}\]"),
    ({"exporters": [5]}, "exporter 5 must be a name"),
    ({"exporters": ["onx"]}, "unknown exporter 'onx'"),
    ({"exporters": ["torch", "torch"]}, "more than once"),
    ({"exporters": [{"torch": 5}]}, "options of exporter 'torch' must be a mapping"),
    ({"exporters": [{"torch": {"opset": 20}}]}, "has no option opset"),
    ({"exporters": [{"onnx": {"opset": "20"}}]}, "opset='20' .* is not a whole number"),
    ({"exporters": [{"onnx": {"opset": 3}}]}, "opset=3 must be from"),
    ({"gate": 0.99}, "gate=0.99 .* must be a Gate, or a mapping"),
    ({"gate": "strict"}, "must be a Gate"),
    ({"gate": True}, "must be a Gate"),
    ({"gate": {"agreement": 0.9}}, "gate has no setting 'agreement'; it has batches, min_agreement"),
    ({"gate": {"min_agreement": "0.99"}}, "min_agreement='0.99' .* is not a number"),
    ({"gate": {"min_agreement": NAN}}, "min_agreement=nan is not a number"),
    ({"gate": {"min_agreement": 99}}, "must be from 0 to 1"),
    ({"gate": {"min_sqnr_db": NAN}}, "min_sqnr_db=nan is not a number"),
    ({"gate": {"min_sqnr_db": "30"}}, "min_sqnr_db='30' .* write e.g. min_sqnr_db=25"),
    ({"gate": {"max_metric_change": -0.1}}, "must be 0 or more"),
    ({"gate": {"max_metric_change": NAN}}, "max_metric_change=nan"),
    ({"gate": {"batches": 0}}, "must be at least 1"),
    ({"gate": {"batches": 2.5}}, "is not a whole number"),
    ({"gate": {"batches": "10"}}, "is not a whole number"),
    ({"gate": {"excuse_rounding": "no"}}, "is neither True nor False"),
    ({"gate": {"on_failure": "ignore"}}, "must be one of error, warn"),
    ({"schedule": 3}, "schedule=3 .* must be a QATSchedule"),
    ({"schedule": {"begin": 3}}, "schedule has no setting 'begin'; it has start"),
    ({"schedule": {"lr": "0.01"}}, "lr='0.01' .* is not a number"),
    ({"schedule": {"lr": NAN}}, "lr=nan is not a number"),
    ({"schedule": {"lr": 0}}, "trains nothing"),
    ({"schedule": {"lr_final": 2}}, "outside"),
    ({"schedule": {"start": -1}}, "start"),
    ({"schedule": {"start": "soon"}}, "start"),
    ({"schedule": {"start": NAN}}, "start"),
    ({"schedule": {"start": True}}, "start"),
    ({"schedule": {"start": 3, "freeze_bn": 1}}, "lies before the start"),
    ({"qconfig": "abacus"}, "Unknown qconfig preset 'abacus'"),
    ({"qconfig": 8}, "must be a preset's name"),
    ({"qconfig": None}, "must be a preset's name"),
    ({"qconfig": {"bits": 8}}, "qconfig has no setting 'bits'"),
    ({"qconfig": {"preset": None}}, "Unknown qconfig preset None"),
    ({"qconfig": {"weight": 8}}, "weight=8 .* must be a WeightSpec"),
    ({"qconfig": {"weight": {"bits": 8}}}, "weight has no setting 'bits'"),
    ({"qconfig": {"weight": {"quant_min": "-7", "quant_max": 7}}}, "quant_min='-7' .* is not a whole number"),
    ({"qconfig": {"weight": {"quant_min": -7.5, "quant_max": 7.5}}}, "is not a whole number"),
    ({"qconfig": {"weight": {"per_channel": "yes"}}}, "is neither True nor False"),
    ({"qconfig": {"weight": {"observer": "best"}}}, "unknown observer 'best'"),
    ({"qconfig": {"activation": {"averaging_constant": "0.1"}}}, "is not a number"),
    ({"qconfig": {"activation": {"averaging_constant": NAN}}}, "nan is not a number"),
    ({"qconfig": {"activation": {"percentile": NAN}}}, "nan is not a number"),
    ({"qconfig": {"activation": {"symmetric": 1}}}, "is neither True nor False"),
    ({"qconfig": {"exclude": "fc"}}, r"write exclude=\['fc'\]"),
    ({"qconfig": {"exclude": [1]}}, r"exclude=\[1\] must be a list of patterns, which are text: exclude=\['1'\]"),
    ({"qconfig": {"include": {"fc": 1}}}, "must be a list of patterns"),
    ({"qconfig": {"overrides": ["fc"]}}, "must be a mapping of patterns"),
    ({"qconfig": {"overrides": {"fc": 4}}}, r"overrides\['fc'\]=4"),
    ({"qconfig": {"overrides": {"fc": {"weight": {"quant_max": 7}}}}}, "not symmetric"),
    ({"qconfig": {"fuse_add": "no"}}, "is neither True nor False"),
    ({"qconfig": {"backend": "torch"}}, "Unknown backend 'torch'"),
    ({"qconfig": {"backend": "pt2e"}}, "needs a quantizer"),
    ({"qconfig": {"engine": "abacus"}}, "is not supported by this CPU"),
    ({"auto_exclude": "yes"}, "must be an AutoExclude|auto_exclude='yes'"),
    ({"auto_exclude": {"layers": 1}}, "auto_exclude has no setting 'layers'"),
    ({"auto_exclude": {"max_layers": True}}, "whole number"),
    ({"auto_exclude": {"max_drop": "0.1"}}, "is not a number"),
    ({"auto_exclude": {"max_drop": NAN}}, "nan is not a number"),
    ({"log_ranges": "all"}, "log_ranges='all' is unknown"),
    ({"log_ranges": True}, "log_ranges=True is unknown"),
    ({"save": "int8"}, "save='int8' is unknown"),
]


@pytest.mark.parametrize(("settings", "complaint"), REFUSED, ids=[str(settings)[:60] for settings, _ in REFUSED])
def test_what_cannot_be_meant_is_refused_at_once(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises((TypeError, ValueError), match=complaint):
        QATCallback(**settings)


def test_mappings_as_yaml_gives_them_are_taken() -> None:
    callback = QATCallback(
        qconfig={
            "preset": "x86_vnni",
            "exclude": ["a"],
            "overrides": {"5": {"weight": {"quant_min": -7, "quant_max": 7}}},
        },
        schedule={"start": 1, "lr": None},
        gate={"min_sqnr_db": 30},
        auto_exclude=False,
    )  # type: ignore[arg-type]
    assert callback.export_settings.gate == Gate(min_sqnr_db=30)
    assert callback.schedule == QATSchedule(start=1, lr=None)
    assert callback.qconfig == QConfig("x86_vnni", exclude=("a",), overrides={"5": LayerQConfig(WeightSpec(-7, 7))})
    assert QATCallback(auto_exclude={"max_layers": 1}).auto_exclude == AutoExclude(1)  # type: ignore[arg-type]
    assert QConfig(activation={"percentile": 99.0}).activation == ActivationSpec(percentile=99.0)  # type: ignore[arg-type]


class Counts(Tiny):
    steps = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1


class OneHot(Counts):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        scores = self(batch[0])
        self.log("top1", (scores.argmax(1) == batch[1].argmax(1)).float().mean())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1].float())


def loader(labels: Any) -> DataLoader[Any]:
    x, y = make_data(24).tensors
    return DataLoader(TensorDataset(x, labels(y)), batch_size=8)


@pytest.mark.parametrize("labels", [lambda y: F.one_hot(y, 3), lambda y: F.one_hot(y, 3) * 0.7 + 0.1])
def test_labels_as_shares_of_the_classes(fit: Fit, labels: Any) -> None:
    trainer = fit(OneHot(), QATCallback(), max_epochs=1, loaders=(loader(labels), loader(labels)))
    assert float(trainer.callback_metrics["qat/fake/accuracy"]) == pytest.approx(
        float(trainer.callback_metrics["top1"])
    )


def test_many_labels_a_sample_get_no_accuracy(fit: Fit) -> None:
    callback, labels = QATCallback(), lambda y: torch.ones(len(y), 3, dtype=torch.long)
    trainer = fit(OneHot(), callback, max_epochs=1, loaders=(loader(labels), loader(labels)))
    assert not [name for name in trainer.callback_metrics if name.endswith("accuracy")]


@pytest.mark.parametrize("directory", ["n" * 256, "file/int8", "a\0b"])
def test_a_place_that_cannot_be_is_known_before_the_first_step(fit: Fit, tmp_path: Path, directory: str) -> None:
    (tmp_path / "file").write_text("x")
    module = Counts()
    with pytest.raises((OSError, ValueError), match=r"[Cc]hoose another path"):
        fit(module, QATCallback(export_dir=str(tmp_path / directory)), max_epochs=1)
    assert module.steps == 0
