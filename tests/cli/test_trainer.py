"""All subcommands, on modules of every kind and through the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lq.callback import QATCallback
from lq.export.artifact.int8_model import load
from tests.cli.runs import LateWithAllData, OwnLayout, quiet_trainer
from tests.tiny import Tiny


def test_data_are_given_to_the_target_as_the_users_step_gives_them(tmp_path: Path) -> None:
    quiet_trainer(tmp_path).analyze(OwnLayout(), out=str(tmp_path / "a"))
    assert (tmp_path / "a" / "analysis.json").is_file()
    done = quiet_trainer(tmp_path).ptq(OwnLayout(), batch_norm=True)
    assert done.results["torch"].keys() == {"val_loss", "accuracy"}


class AskedError(Exception):
    pass


def measure_only_asks(float_model: Any, train: Any, test: Any, qconfig: Any, qat: Any, *_: Any) -> None:
    """In the place of the measurement, which takes its time."""
    raise AskedError(f"{type(float_model).__name__} {type(qat).__base__.__name__}")


def test_a_module_may_build_its_layers_in_configure_model(
    tmp_path: Path, trained: tuple[Path, QATCallback], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, path = quiet_trainer(tmp_path), str(trained[0])
    torch.save({"state_dict": Tiny().state_dict()}, tmp_path / "float.ckpt")
    done = trainer.export(LateWithAllData(), ckpt_path=path)
    assert done.results["fp32"].keys() == {"val_loss", "accuracy"}
    trainer.ptq(LateWithAllData(), ckpt_path=str(tmp_path / "float.ckpt"))
    trainer.analyze(LateWithAllData(), out=str(tmp_path / "a"))
    monkeypatch.setattr("lq.cli.report.measure", measure_only_asks)
    with pytest.raises(AskedError, match="Sequential GraphModule"):
        trainer.report(LateWithAllData(), ckpt_path=path)
    trainer.bench(LateWithAllData(), artifact=str(done.directory), batch_sizes=[1], min_time=0.01, compile=False)


# Lightning says so whenever a checkpoint is loaded into a new version directory.
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_command_line(run_lq: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "digits" / "qat.yaml"
    config = yaml.safe_load(recipe.read_text())
    config["trainer"] |= {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "log_every_n_steps": 1}
    config["trainer"]["callbacks"][0]["init_args"]["schedule"] = {"start": 0}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(config))
    run_lq("fit", "--config", "few.yaml")
    run = tmp_path / "runs" / "digits" / "version_0"
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    given = ["--config", run / "config.yaml"]
    run_lq("export", *given, "--ckpt_path", checkpoint, "--exporters", "[torch, {pt2: {}}]", "--export_dir", "out")
    assert sorted(load(tmp_path / "out").manifest["artifacts"]) == ["pt2", "torch"]
    run_lq("bench", *given, "--artifact", "out", "--compile", "false", "--min_time", 0.01, "--batch_sizes", "[1]")
    assert "int8 pt2" in capsys.readouterr().out
    run_lq("analyze", *given, "--ckpt_path", checkpoint, "--batches", 1, "--out", "layers")
    assert (tmp_path / "layers" / "analysis.json").is_file()
    assert "instead of" in (out := capsys.readouterr().out) or "nothing" in out
