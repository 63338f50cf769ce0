"""auto_bits: bits are chosen before the first step, once, and everybody who comes later knows of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lq.analysis.bits import AutoBits
from lq.backends.prepare import plan_of
from lq.callback import QATCallback
from lq.checkpoints.checkpoint import Checkpoint, load_checkpoint
from lq.config.qconfig import QConfig
from lq.config.schedule import QATSchedule
from lq.export.artifact.manifest import read_manifest
from tests.callback.conftest import Fit
from tests.tiny import Tiny, keeper, make_trainer, train_loader, val_loader

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:lq. QAT ended with")

FREE = QConfig(keep="nothing")


def callback(budget: Any = "effective_bits=3", qconfig: Any = FREE, **others: Any) -> QATCallback:
    schedule = QATSchedule(freeze_bn=0, observer_off="never")
    return QATCallback(qconfig=qconfig, auto_bits=budget, schedule=schedule, **others)


def weights(module: Any) -> dict[str, str | None]:
    return {row.name: row.weight for row in plan_of(module.model).layers}


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, QATCallback, Tiny]:
    torch.manual_seed(0)
    found, kept, module = callback(), keeper(tmp_path / "kept"), Tiny()
    make_trainer(tmp_path, found, kept, max_epochs=1).fit(module, train_loader(), val_loader())
    return Path(kept.last_model_path), found, module


def test_the_budget_is_kept_and_everybody_knows(trained: tuple[Path, QATCallback, Tiny]) -> None:
    path, found, module = trained
    assert found.bits is not None
    assert found.bits.chosen["effective_bits"] <= 3
    assert weights(module) == {name: str(option.spec) for name, option in found.bits.layers.items()}
    assert found.qconfig == FREE, "the user's own stays as it is"
    assert found.deployment is not None
    assert found.deployment.directory is not None
    assert read_manifest(found.deployment.directory)["qconfig"]["overrides"] == {
        name: {"weight": {"quant_min": option.spec.quant_min, "quant_max": option.spec.quant_max}, "activation": None}
        for name, option in found.bits.layers.items()
        if option.spec is not None
    }
    assert weights(load_checkpoint(path, Tiny())) == weights(module)


@pytest.mark.parametrize("how", ["resume", "same module"])
def test_no_second_search(
    tmp_path: Path, trained: tuple[Path, QATCallback, Tiny], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, first, module = trained
    monkeypatch.setattr("lq.callback.search.copy_on_first_process", lambda *_: pytest.fail("searched once more"))
    again, resumed = callback(), module if how == "same module" else Tiny()
    trainer = make_trainer(tmp_path, again, keeper(tmp_path / "again"), max_epochs=2)
    trainer.fit(resumed, train_loader(), val_loader(), ckpt_path=None if how == "same module" else path)
    assert again.bits is None
    assert weights(resumed) == weights(module)
    assert Checkpoint.read(tmp_path / "again" / "last.ckpt").entry.qconfig == first.bits.apply(FREE)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "other",
    [
        QConfig("x86_vnni", keep="nothing"),
        QConfig(keep="nothing", overrides={"5": {"activation": {"quant_max": 15}}}),
        QConfig(keep="nothing", overrides={"0": {"weight": {"observer": "mse"}}}),
    ],
    ids=["preset", "activation", "weight"],
)
def test_a_checkpoint_of_other_settings_is_refused(
    tmp_path: Path, trained: tuple[Path, QATCallback, Tiny], other: QConfig
) -> None:
    with pytest.raises(ValueError, match="prepared with another qconfig"):
        make_trainer(tmp_path, callback(qconfig=other), max_epochs=2).fit(
            Tiny(), train_loader(), val_loader(), ckpt_path=trained[0]
        )


def test_overrides_of_the_users_stay_and_a_resumed_run_knows_them(fit: Fit, tmp_path: Path) -> None:
    own = QConfig(keep="nothing", overrides={"0": {"weight": {"observer": "mse"}, "activation": {"quant_max": 127}}})
    module = Tiny()
    fit(module, callback(qconfig=own), max_epochs=1).save_checkpoint(tmp_path / "last.ckpt")
    assert "mse" in (weights(module)["0"] or "")
    fit(Tiny(), callback(qconfig=own), max_epochs=2, ckpt_path=tmp_path / "last.ckpt")


def test_bits_of_activations_are_trained_with_and_a_resumed_run_knows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    own = QConfig(keep="nothing", overrides={"5": {"activation": {"averaging_constant": 0.5}}})
    budget = {"budget": "effective_bits=4", "activation_bits": 4.0}
    first, kept, module = callback(budget, own), keeper(tmp_path / "kept"), Tiny()
    make_trainer(tmp_path, first, kept, max_epochs=1).fit(module, train_loader(), val_loader())
    assert first.bits is not None
    assert first.bits.activations is not None
    assert first.bits.activations.chosen["bits"] <= 4
    grids = {row.after: row.grid for row in plan_of(module.model).tensors}
    assert grids == {name: str(option.spec) for name, option in first.bits.activations.options.items()}
    assert first.bits.apply(own).overrides["5"].activation.averaging_constant == 0.5  # type: ignore[union-attr]
    monkeypatch.setattr("lq.callback.search.copy_on_first_process", lambda *_: pytest.fail("searched once more"))
    again, resumed, path = callback(budget, own), Tiny(), kept.last_model_path
    trainer = make_trainer(tmp_path, again, keeper(tmp_path / "again"), max_epochs=2)
    trainer.fit(resumed, train_loader(), val_loader(), ckpt_path=path)
    assert {row.after: row.grid for row in plan_of(resumed.model).tensors} == grids
    other = replace(own, overrides={"5": {"activation": {"averaging_constant": 0.1}}})
    with pytest.raises(ValueError, match="prepared with another qconfig"):
        make_trainer(tmp_path, callback(budget, other), max_epochs=2).fit(
            Tiny(), train_loader(), val_loader(), ckpt_path=path
        )


def test_it_is_said_what_was_chosen(fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(Tiny(), callback({"budget": "size=200B", "widths": [2, 8]}), max_epochs=1)
    (line,) = [record.getMessage() for record in caplog.records if "auto_bits" in record.getMessage()]
    assert line.startswith("lq: auto_bits: size=0.0002MB: 0.0001")
    assert "bits per weight, KL divergence" in line


def test_an_impossible_budget_ends_the_run_before_the_first_step(fit: Fit) -> None:
    module = Tiny()
    before = module.model[0].weight.detach().clone()
    with pytest.raises(ValueError, match="less than the widths allow: it can be from effective_bits=2"):
        fit(module, callback("effective_bits=1.5"), max_epochs=1)
    assert torch.equal(module.model[0].weight, before)


def test_what_cannot_be_meant_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="auto_exclude and auto_bits cannot be used in the same run"):
        callback(auto_exclude=True)
    with pytest.raises(ValueError, match=r"schedule\.start=2 they are trained in the same fit.*`lq bits`"):
        QATCallback(auto_bits="effective_bits=4", schedule=QATSchedule(start=2))
    with pytest.raises(ValueError, match="auto_bits has no setting 'bits'"):
        callback({"bits": 4})
    with pytest.raises(TypeError, match="auto_bits=4"):
        callback(4)
    assert callback({"budget": "size=1MB"}).auto_bits == AutoBits("size=1MB")


def test_the_files_of_the_exporters_count(fit: Fit) -> None:
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(ValueError, match="it can be from effective_bits=8 to effective_bits=8"):
        fit(Tiny(), callback("effective_bits=6", exporters=["torch", "litert"]), max_epochs=1)
    with pytest.raises(ValueError, match=r"it can be from effective_bits=8 to effective_bits=8"):
        fit(Tiny(), callback("effective_bits=6", exporters=[{"onnx": {"opset": 20}}]), max_epochs=1)


def test_one_line_of_yaml_on_digits(run_lq: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = {
        "class_path": "lq.QATCallback",
        "init_args": {"auto_bits": "size=0.004MB", "qconfig": {"keep": "nothing"}},
    }
    config = {
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "callbacks": [callback], "logger": False,
                    "enable_checkpointing": False, "limit_train_batches": 4, "default_root_dir": "."},
        "model": {"class_path": "lq.models.DigitsClassifier", "init_args": {"width": 4}},
        "data": {"class_path": "lq.data.DigitsDataModule"},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    with caplog.at_level("INFO"):
        run_lq("fit", "--config", "run.yaml")
    assert "lq: auto_bits: size=0.004MB: 0.00" in caplog.text
    overrides = read_manifest(tmp_path / "int8")["qconfig"]["overrides"]
    assert len({row["weight"]["quant_max"] for row in overrides.values()}) > 1
