"""Below 8 bits the best of what was trained and what it started from is delivered."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lq.callback import QATCallback
from lq.callback.candidates import UNTRAINED, StartingPoint, judge_start
from lq.config.qconfig import QConfig
from lq.config.schedule import QATSchedule
from lq.config.specs import ActivationSpec, WeightSpec
from lq.export.artifact.int8_model import load_prepared_state
from lq.export.artifact.manifest import read_manifest
from tests.callback.conftest import Fit
from tests.tiny import NoNoise

FOUR = QConfig(weight=WeightSpec(-7, 7), activation=ActivationSpec(0, 15))


def callback(rate: float, folder: Path, **settings: Any) -> QATCallback:
    return QATCallback(
        qconfig=FOUR, schedule=QATSchedule(lr=rate), export_dir=str(folder), monitor="val_loss", mode="min", **settings
    )


def fitted(fit: Fit) -> NoNoise:
    """A module that has learned something in float."""
    torch.manual_seed(0)
    module = NoNoise(None)
    fit(module, max_epochs=8)
    return module


def test_a_training_that_spoils_the_model_delivers_what_it_started_from(fit: Fit, tmp_path: Path) -> None:
    module = fitted(fit)
    module.lr = 50.0
    weights = module.model[0].weight.detach().clone()
    spoilt = callback(1.0, tmp_path / "int8")
    with pytest.warns(UserWarning, match=r"QAT ended with val_loss .* had .*, so the untrained model is exported"):
        fit(module, spoilt, max_epochs=2)
    assert spoilt.deployment is not None
    results = spoilt.deployment.results
    assert read_manifest(tmp_path / "int8")["weights"] == UNTRAINED
    assert torch.equal(load_prepared_state(tmp_path / "int8")["0.weight"], weights)
    assert results["fake"]["val_loss"] == pytest.approx(results["ptq"]["val_loss"], rel=1e-4)
    assert [row["model"] for row in spoilt.deployment.rows][:3] == ["FP32", "PTQ, before QAT", "fake-quantized"]


def test_a_training_that_pays_is_delivered(fit: Fit, tmp_path: Path) -> None:
    good = callback(0.1, tmp_path / "int8")
    fit(fitted(fit), good, max_epochs=6)
    assert good.deployment is not None
    assert good.deployment.results["fake"]["val_loss"] < good.deployment.results["ptq"]["val_loss"]
    assert read_manifest(tmp_path / "int8")["weights"] != UNTRAINED


def test_a_resumed_run_knows_the_figures_and_warns(fit: Fit, tmp_path: Path) -> None:
    module = fitted(fit)
    fit(module, callback(0.01, tmp_path / "one"), max_epochs=1).save_checkpoint(tmp_path / "last.ckpt")
    again = NoNoise(None)
    again.lr = 50.0
    with pytest.warns(UserWarning, match=r"QAT ended with val_loss .* had .*lq.quantize_static"):
        fit(again, callback(1.0, tmp_path / "two"), max_epochs=3, ckpt_path=tmp_path / "last.ckpt")


def test_at_eight_bits_nothing_is_asked(fit: Fit) -> None:
    plain = QATCallback(schedule=QATSchedule(lr=0.1))
    fit(fitted(fit), plain, max_epochs=1)
    assert plain.deployment is not None
    assert "ptq" not in plain.deployment.results


def test_weights_of_few_bits_alone_are_enough_to_evaluate_what_training_starts_from(fit: Fit, tmp_path: Path) -> None:
    module = fitted(fit)
    module.lr = 50.0
    few = QConfig(weight=WeightSpec(-3, 3), keep="nothing")
    schedule = QATSchedule(lr=1.0)
    spoilt = QATCallback(qconfig=few, schedule=schedule, export_dir=str(tmp_path / "a"), monitor="val_loss", mode="min")
    with pytest.warns(UserWarning, match=r"QAT ended with val_loss .* had .*, so the untrained model is exported"):
        fit(module, spoilt, max_epochs=2)
    assert spoilt.deployment is not None
    assert "ptq" in spoilt.deployment.results
    assert read_manifest(tmp_path / "a")["weights"] == UNTRAINED


@pytest.mark.parametrize(("before", "delivered"), [(math.nan, False), (math.inf, False), (-1.0, True)])
def test_a_start_that_is_no_number_is_worse_than_any_training(
    fit: Fit, tmp_path: Path, before: float, delivered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss: the lower, the better."""

    def judged(*args: Any) -> StartingPoint:
        start = judge_start(*args)
        return replace(start, results={"val_loss": before})

    monkeypatch.setattr("lq.callback.qat.judge_start", judged)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="lq: QAT ended with", category=UserWarning)
        fit(fitted(fit), callback(0.01, tmp_path / "int8"), max_epochs=1)
    assert (read_manifest(tmp_path / "int8")["weights"] == UNTRAINED) is delivered
