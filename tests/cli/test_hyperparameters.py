"""Checkpoints of scripts, with hyperparameters, on the command line."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from lq.callback import QATCallback
from lq.cli.hyperparameters import hyperparameters_of, model_settings

SOURCE = """
import lightning as L, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(L.LightningModule):
    def __init__(self, lr: float = 0.1, width: int = 8, kind: str = "plain"):
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
    def training_step(self, batch, i):
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])
    def validation_step(self, batch, i):
        self.log("val_loss", nn.functional.cross_entropy(self.model(batch[0]), batch[1]))
    test_step = validation_step
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.lr)

class Data(L.LightningDataModule):
    def _loader(self):
        return DataLoader(TensorDataset(torch.rand(32, 4), torch.arange(32) % 3), 8)
    train_dataloader = val_dataloader = test_dataloader = _loader
"""

OTHERS = """
from argparse import Namespace
from dataclasses import dataclass
from script_of_mine import Net as Plain

class Demanding(Plain):
    def __init__(self, width: int, **kwargs):
        super().__init__(width=width, **kwargs)
        self.save_hyperparameters()

class OneConfig(Plain):
    def __init__(self, config):
        super().__init__(config["lr"], config.width if hasattr(config, "width") else config["width"])
        self.save_hyperparameters(config)

@dataclass
class Options:
    lr: float = 0.1
    width: int = 8

class OneDataclass(Plain):
    def __init__(self, options: Options):
        super().__init__(options.lr, options.width)
        self.save_hyperparameters()

class MaybeNamespace(Plain):
    def __init__(self, args: Namespace = None, **given):
        args = args or Namespace(**given)
        super().__init__(args.lr, args.width)
        self.save_hyperparameters(args)

class DemandedNamespace(Plain):
    def __init__(self, args: Namespace):
        super().__init__(args.lr, args.width)
        self.save_hyperparameters(args)

class OneNamespace(Plain):
    def __init__(self, args):
        super().__init__(args.lr, args.width)
        self.save_hyperparameters(args)
"""

Make = Callable[..., Path]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Train the module in a script, and write a YAML that names its class."""
    (tmp_path / "script_of_mine.py").write_text(SOURCE)
    (tmp_path / "others_of_mine.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(
        init_args: dict[str, Any] | None = None, change: dict[str, Any] | None = None, of: str = "Net", **given: Any
    ) -> Path:
        import others_of_mine as others  # type: ignore[import-not-found]
        import script_of_mine as mine  # type: ignore[import-not-found]

        trainer = Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(getattr(mine if of == "Net" else others, of)(**given), mine.Data())
        trainer.save_checkpoint(tmp_path / "float.ckpt")
        if change is not None:
            checkpoint = torch.load(tmp_path / "float.ckpt")
            checkpoint["hyper_parameters"] |= change
            torch.save(checkpoint, tmp_path / "float.ckpt")
        config = {
            "model": {"class_path": "script_of_mine.Net", "init_args": init_args or {}},
            "data": {"class_path": "script_of_mine.Data"},
            "trainer": {"logger": False, "accelerator": "cpu"},
        }
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
        return tmp_path / "float.ckpt"

    yield make
    sys.modules.pop("script_of_mine", None)
    sys.modules.pop("others_of_mine", None)


@pytest.mark.parametrize("subcommand", ["ptq", "analyze", "test"])
def test_a_checkpoint_of_a_script_is_taken(run_lq: Any, trained: Make, capsys: Any, subcommand: str) -> None:
    checkpoint = trained()
    run_lq(subcommand, "--config", "my.yaml", "--ckpt_path", checkpoint)
    assert "hyperparameters" not in capsys.readouterr().err


def test_its_hyperparameters_count_and_are_said(run_lq: Any, trained: Make, capsys: Any) -> None:
    checkpoint = trained({"width": 5, "lr": 0.3}, width=16)
    run_lq("ptq", "--config", "my.yaml", "--ckpt_path", checkpoint)
    said = capsys.readouterr().err
    assert "float.ckpt: its hyperparameters replace those of the configuration: " in said
    assert "width=16 (not 5)" in said
    assert "lr=0.1 (not 0.3)" in said


def test_what_is_no_argument_does_not_count(run_lq: Any, trained: Make, capsys: Any) -> None:
    checkpoint = trained(change={"note": "a run of mine", "nested": {"a": 1}})
    run_lq("ptq", "--config", "my.yaml", "--ckpt_path", checkpoint)
    said = capsys.readouterr().err
    assert "do not fit" not in said
    assert "note" not in said


def test_what_does_not_fit_leaves_those_of_the_configuration(run_lq: Any, trained: Make, capsys: Any) -> None:
    checkpoint = trained(change={"width": "many"})
    run_lq("ptq", "--config", "my.yaml", "--ckpt_path", checkpoint)
    assert "its hyperparameters do not fit script_of_mine.Net; those of the configuration" in capsys.readouterr().err


def test_what_is_typed_comes_first(run_lq: Any, trained: Make, capsys: Any) -> None:
    checkpoint = trained(width=16)
    run_lq("test", "--config", "my.yaml", "--ckpt_path", checkpoint, "--model.lr", "0.7")
    said = capsys.readouterr().err
    assert "width=16 (not 8)" in said
    assert "lr=" not in said


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("Demanding", {"width": 6}),
        ("OneConfig", {"config": {"lr": 0.1, "width": 6}}),
        ("OneNamespace", {"args": Namespace(lr=0.1, width=6)}),
        ("MaybeNamespace", {"args": Namespace(lr=0.1, width=6)}),
        ("DemandedNamespace", {"args": Namespace(lr=0.1, width=6)}),
    ],
)
def test_the_ways_to_save_them(run_lq: Any, trained: Make, capsys: Any, name: str, given: dict[str, Any]) -> None:
    """The class is named; its arguments are in no file but the checkpoint."""
    checkpoint = trained(of=name, **given)
    run_lq(
        "test", "--model", f"others_of_mine.{name}", "--data", "script_of_mine.Data", "--ckpt_path", checkpoint,
        "--trainer.logger", "false", "--trainer.accelerator", "cpu",
    )  # fmt: skip
    assert "val_loss" in capsys.readouterr().out


def test_a_dataclass_is_made_again(run_lq: Any, trained: Make, capsys: Any) -> None:
    trained()
    from others_of_mine import Options

    checkpoint = trained(of="OneDataclass", options=Options(width=6))
    run_lq(
        "test", "--model", "others_of_mine.OneDataclass", "--data", "script_of_mine.Data", "--ckpt_path", checkpoint,
        "--trainer.logger", "false", "--trainer.accelerator", "cpu", "--weights_only", "false",
    )  # fmt: skip
    assert "val_loss" in capsys.readouterr().out


@pytest.mark.parametrize("written", [str, Path.as_uri])
def test_a_checkpoint_of_a_qat_run_is_tested_as_it_was_trained(
    run_lq: Any, trained: Make, tmp_path: Path, capsys: Any, written: Callable[[Path], str]
) -> None:
    trained()
    from script_of_mine import Data, Net

    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, callbacks=[QATCallback(export_dir=tmp_path / "int8")],
    )  # fmt: skip
    torch.manual_seed(0)
    module, data = Net(width=6), Data()
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "qat.ckpt")
    run_lq("test", "--config", "my.yaml", "--ckpt_path", written(tmp_path / "qat.ckpt"))
    assert "val_loss" in capsys.readouterr().out


def test_those_that_the_command_line_saves_still_count(run_lq: Any, trained: Make, capsys: Any) -> None:
    checkpoint = trained(change={"_class_path": "script_of_mine.Net", "_instantiator": "anything", "width": 8})
    run_lq("test", "--config", "my.yaml", "--ckpt_path", checkpoint)
    captured = capsys.readouterr()
    assert "do not fit" not in captured.err
    assert "val_loss" in captured.out


def test_files_that_are_no_plain_checkpoints_have_none(tmp_path: Path) -> None:
    for name, content in (("list", [1]), ("none", {}), ("object", {"hyper_parameters": PurePosixPath("a")})):
        torch.save(content, tmp_path / name)
        assert hyperparameters_of(tmp_path / name) == {}
    (tmp_path / "text").write_text("no checkpoint")
    assert hyperparameters_of(tmp_path / "text") == {}
    assert hyperparameters_of(tmp_path) == {}


def test_a_file_url_and_the_folder_of_a_sharded_checkpoint_have_them(tmp_path: Path) -> None:
    for file in (tmp_path / "a.ckpt", tmp_path / "meta.pt"):
        torch.save({"hyper_parameters": {"lr": 0.1}}, file)
    assert hyperparameters_of((tmp_path / "a.ckpt").as_uri()) == {"lr": 0.1}
    (tmp_path / ".metadata").touch()
    assert hyperparameters_of(tmp_path) == hyperparameters_of(tmp_path.as_uri()) == {"lr": 0.1}
    assert hyperparameters_of("s3://bucket/a.ckpt") == {}


def test_nothing_new_is_nothing_to_set() -> None:
    model = {"class_path": "Net", "init_args": {"lr": 0.1, "scale": torch.ones(2)}}
    assert model_settings(model, {"lr": 0.1, "other": 3}) is None
    assert model_settings(model, {"scale": torch.ones(2)}) is not None
    assert model_settings({"class_path": "Net"}, {"lr": 0.1}) is None
