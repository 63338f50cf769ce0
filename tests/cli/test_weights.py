"""An artifact or a checkpoint in the place of the other is told with what to give instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lq.callback import QATCallback
from lq.cli.weights import is_artifact, read_checkpoint
from tests.cli.runs import WithAllData, quiet_trainer


def test_an_artifact_is_no_float_checkpoint(tmp_path: Path, trained: tuple[Path, QATCallback]) -> None:
    assert trained[1].deployment is not None
    artifact = str(trained[1].deployment.directory)
    assert is_artifact(artifact)
    assert not any(map(is_artifact, (str(trained[0]), str(tmp_path), "memory://run/int8")))
    for subcommand in ("ptq", "bits"):
        with pytest.raises(ValueError, match=r"int8 is an artifact of a QAT run or of lq ptq; give a checkpoint of"):
            getattr(quiet_trainer(tmp_path), subcommand)(WithAllData(), ckpt_path=artifact)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        read_checkpoint(str(tmp_path), None)


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_lightning_loads_no_artifact(
    run_lq: Any, trained: tuple[Path, QATCallback], capsys: pytest.CaptureFixture[str], subcommand: str
) -> None:
    assert trained[1].deployment is not None
    artifact = str(trained[1].deployment.directory)
    with pytest.raises(SystemExit):
        run_lq(subcommand, "--model", "tests.cli.runs.WithAllData", "--ckpt_path", artifact)
    error = capsys.readouterr().err
    assert f"int8 is an artifact, which lq {subcommand} cannot load: give a checkpoint of the run" in error


def test_a_report_takes_a_float_checkpoint_as_another_option(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    torch.save({"state_dict": WithAllData().state_dict()}, tmp_path / "float.ckpt")
    with pytest.raises(ValueError, match=r"float\.ckpt is a checkpoint of a float model: give it as --float_ckpt_path"):
        quiet_trainer(tmp_path).report(WithAllData(), ckpt_path=str(tmp_path / "float.ckpt"))


@pytest.mark.parametrize("subcommand", ["ptq", "bits", "analyze", "report"])
def test_without_a_checkpoint_a_line_says_so(
    run_lq: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, subcommand: str
) -> None:
    if subcommand == "report":
        pytest.importorskip("matplotlib")
    monkeypatch.setattr(WithAllData, "train_dataloader", lambda self: [])
    monkeypatch.setattr(WithAllData, "val_dataloader", lambda self: [])
    with caplog.at_level("INFO"), pytest.raises(SystemExit):  # without data
        run_lq(subcommand, "--model", "tests.cli.runs.WithAllData")
    option = "float_ckpt_path" if subcommand == "report" else "ckpt_path"
    assert f"lq: no --{option}: the weights of the float model are those that its class" in caplog.text


@pytest.mark.parametrize("subcommand", ["ptq", "bits", "analyze", "report"])
def test_without_a_checkpoint_that_of_the_callback_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subcommand: str
) -> None:
    if subcommand == "report":
        pytest.importorskip("matplotlib")
    monkeypatch.setattr(WithAllData, "train_dataloader", lambda self: [])
    monkeypatch.setattr(WithAllData, "val_dataloader", lambda self: [])
    before, module = WithAllData(), WithAllData()
    torch.save({"state_dict": before.state_dict()}, tmp_path / "float.ckpt")
    trainer = quiet_trainer(tmp_path, QATCallback(float_ckpt_path=str(tmp_path / "float.ckpt")))
    with pytest.raises(ValueError, match=r"batch|empty|data"):  # there are none
        getattr(trainer, subcommand)(module)
    assert torch.equal(module.model[0].weight, before.model[0].weight)
