"""auto_exclude: a planted bad layer is found before the first step, once, and everybody who comes later knows of it."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import torchmetrics
from lightning.pytorch.strategies import Strategy
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lq.analysis.auto_exclude import AutoExclude, find_exclusions
from lq.backends.prepare import is_prepared, plan_of, prepare, qconfig_of
from lq.callback import QATCallback
from lq.callback.processes import on_first_process
from lq.checkpoints.checkpoint import Checkpoint, load_checkpoint
from lq.config.qconfig import QConfig
from lq.config.schedule import QATSchedule
from lq.console import BatchCounter
from tests.analysis.planted import BAD, PER_TENSOR, make_batches, make_planted
from tests.callback.conftest import Fit
from tests.tiny import WEIGHTS_ONLY, Tiny, keeper, make_trainer, quicken_deployment, train_loader, val_loader

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

LIMITS = AutoExclude(max_slowdown=100.0)  # the times of so small layers say nothing
DATA = TensorDataset(*map(torch.cat, zip(*make_batches(), strict=True)))


def loader() -> Any:
    return DataLoader(DATA, batch_size=32)


class Planted(L.LightningModule):
    def __init__(self, bad: tuple[str, ...] = (BAD,)) -> None:
        super().__init__()
        self.model = make_planted(bad).train()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.model(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def callback(auto_exclude: Any = LIMITS, qconfig: Any = PER_TENSOR, **others: Any) -> QATCallback:
    schedule = QATSchedule(freeze_bn=0, observer_off="never")
    return QATCallback(qconfig=qconfig, auto_exclude=auto_exclude, schedule=schedule, **others)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QATCallback, Planted]:
    folder = tmp_path_factory.mktemp("finished")
    found, kept, module = callback(), keeper(folder / "kept"), Planted()
    with pytest.MonkeyPatch.context() as monkeypatch:
        quicken_deployment(monkeypatch)
        make_trainer(folder, found, kept, max_epochs=1).fit(module, loader(), loader())
    return Path(kept.last_model_path), found, module


@pytest.fixture
def trained(finished: tuple[Path, QATCallback, Planted]) -> tuple[Path, QATCallback, Planted]:
    """The checkpoint of a run that has found its layer, its callback and a copy of its module."""
    path, found, module = finished
    module.trainer = None  # type: ignore[assignment]  # it holds what cannot be copied
    return path, found, copy.deepcopy(module)


def refuse_analysis(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("analysed once more")

    monkeypatch.setattr("lq.callback.search.copy_on_first_process", refuse)


def float_layers(module: Any) -> list[str]:
    return [layer.name for layer in plan_of(module.model).layers if layer.weight is None]


def test_the_planted_layer_stays_in_float_and_everybody_knows(trained: tuple[Path, QATCallback, Planted]) -> None:
    path, found, module = trained
    assert found.exclusions is not None
    assert found.exclusions.layers == (BAD,)
    assert float_layers(module) == [BAD]
    assert found.qconfig == PER_TENSOR, "the user's own stays as it is"
    assert Checkpoint.read(path).entry.qconfig.exclude == (BAD,)
    assert found.deployment is not None
    assert found.deployment.directory is not None
    manifest = json.loads((found.deployment.directory / "lq.json").read_text())
    assert manifest["qconfig"]["exclude"] == [BAD]
    assert found.deployment.results["torch"]["accuracy"] > 0.9
    assert float_layers(load_checkpoint(path, Planted())) == [BAD]


def test_it_is_said_why_and_for_which_price(fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(Planted(), callback(), loaders=(loader(), loader()), max_epochs=1)
    (line,) = [record.getMessage() for record in caplog.records if "auto_exclude" in record.getMessage()]
    assert line.startswith("lq: auto_exclude: quantization takes accuracy from 1 to 0.")
    assert f"exclude {BAD} " in line
    assert "% time: in float, it takes the loss from 0." in line


@pytest.mark.parametrize("how", ["resume", "test", "same module", "weights only"])
def test_no_second_analysis(
    tmp_path: Path, trained: tuple[Path, QATCallback, Planted], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_analysis(monkeypatch)
    path, _, module = trained
    again = callback()
    trainer = make_trainer(tmp_path, again, keeper(tmp_path / "again"), max_epochs=2)
    if how == "same module":
        trainer.fit(module, loader(), loader())
    elif how == "test":
        module = Planted()
        trainer.test(module, loader(), ckpt_path=path)
    else:
        module = Planted()
        trainer.fit(module, loader(), loader(), ckpt_path=path, **(WEIGHTS_ONLY if how == "weights only" else {}))
        assert trainer.current_epoch == 2
        assert Checkpoint.read(tmp_path / "again" / "last.ckpt").entry.qconfig.exclude == (BAD,)
    assert float_layers(module) == [BAD]
    assert again.exclusions is None


def test_its_checkpoint_is_read_once_before_lightning_does(
    tmp_path: Path, trained: tuple[Path, QATCallback, Planted], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Any] = []
    load = Strategy.load_checkpoint
    monkeypatch.setattr(Strategy, "load_checkpoint", lambda *args, **how: reads.append(args[1]) or load(*args, **how))
    trainer = make_trainer(tmp_path, callback(), keeper(tmp_path / "again"), max_epochs=2)
    trainer.fit(Planted(), loader(), loader(), ckpt_path=trained[0])
    assert reads == [trained[0]] * 2


def test_a_checkpoint_with_other_grids_is_refused(
    tmp_path: Path, trained: tuple[Path, QATCallback, Planted], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_analysis(monkeypatch)
    other = callback(qconfig="portable")
    with pytest.raises(ValueError, match="prepared with another qconfig"):
        make_trainer(tmp_path, other, max_epochs=2).fit(Planted(), loader(), loader(), ckpt_path=trained[0])
    with pytest.raises(ValueError, match="was prepared for QAT before, with"):
        make_trainer(tmp_path, other).fit(trained[2], loader(), loader())


def test_without_auto_exclude_such_a_checkpoint_is_refused(
    tmp_path: Path, trained: tuple[Path, QATCallback, Planted]
) -> None:
    trainer = make_trainer(tmp_path, callback(False), keeper(tmp_path / "again"), max_epochs=2)
    with pytest.raises(ValueError, match=r"another qconfig: exclude=\('6',\) \(here \(\)\)"):
        trainer.fit(Planted(), loader(), loader(), ckpt_path=trained[0])


def test_the_weights_of_a_float_checkpoint_are_looked_at(tmp_path: Path) -> None:
    kept = keeper(tmp_path / "float")
    make_trainer(tmp_path, kept, max_epochs=1).fit(Planted(), loader(), loader())
    module, found = Planted(bad=()), callback()
    trainer = make_trainer(tmp_path, found, keeper(tmp_path / "qat"), max_epochs=2)
    trainer.fit(module, loader(), loader(), ckpt_path=kept.last_model_path)
    assert found.exclusions is not None
    assert found.exclusions.layers == (BAD,)


class Steps(L.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


def test_where_nothing_is_excluded_training_is_what_it_would_have_been(fit: Fit) -> None:
    losses = []
    for auto_exclude in (False, True):
        torch.manual_seed(3)
        module, steps, found = Tiny(), Steps(), QATCallback(auto_exclude=auto_exclude, schedule=QATSchedule(lr=0.5))
        fit(module, found, steps, max_epochs=2)  # with dropout
        losses.append(steps.losses)
        assert float_layers(module) == []
        assert (found.exclusions is not None) == auto_exclude
    assert losses[0] == losses[1]


def test_the_users_metric_and_labels_count(fit: Fit) -> None:
    metric = torchmetrics.MeanSquaredError()
    found = QATCallback(auto_exclude=True, metric=metric, target_fn=lambda batch: F.one_hot(batch[1], 3).float())
    fit(Tiny(), found, max_epochs=1)
    assert found.exclusions is not None
    assert "quantization takes mean_squared_error from" in found.exclusions.verdict


def test_learned_scales_of_excluded_layers_are_no_parameters(fit: Fit) -> None:
    assert PER_TENSOR.weight is not None
    learned = replace(PER_TENSOR, weight=replace(PER_TENSOR.weight, learned_scale=True))
    module = Planted()
    fit(module, callback(qconfig=learned), loaders=(loader(), loader()), max_epochs=1)
    assert float_layers(module) == [BAD]
    assert "model.qat_state.wq_3.learned_scale.log_factor" in module.state_dict()
    assert f"model.qat_state.wq_{BAD}.learned_scale.log_factor" not in module.state_dict()


class OwnData(Planted):
    """Whose validation data exist only after setup()."""

    def setup(self, stage: str) -> None:
        self.data = DATA

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=32)

    val_dataloader = train_dataloader


class NoValidation(Tiny):
    validation_step = L.LightningModule.validation_step


def test_what_cannot_be_analysed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"schedule\.start=2 they are trained in the same fit.*`lq analyze`"):
        QATCallback(auto_exclude=True, schedule=QATSchedule(start=2))
    with pytest.raises(ValueError, match=r"before OwnData\.setup\(\) has run.*LightningDataModule"):
        make_trainer(tmp_path, callback()).fit(OwnData())
    with pytest.raises(ValueError, match=r"on the validation data, and this fit has none.*QConfig\(exclude="):
        make_trainer(tmp_path, callback(qconfig="portable")).fit(NoValidation(), train_loader())
    with pytest.raises(ValueError, match=r"on the validation data, and this fit has none"):
        make_trainer(tmp_path, callback(), limit_val_batches=0).fit(Planted(), loader(), loader())
    metric = torchmetrics.classification.MultilabelAccuracy(num_labels=7)
    with pytest.raises(ValueError, match="metric MultilabelAccuracy does not fit the batch"):
        make_trainer(tmp_path, callback(metric=metric)).fit(Planted(), loader(), loader())


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed training")
def test_all_processes_exclude_what_the_first_has_found(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(root / "tests/callback/exclusions_run.py"), str(tmp_path)]
    done = subprocess.run(command, cwd=root, env=environment, timeout=90, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["exclude"] == second["exclude"] == [BAD]
    assert torch.equal(first["weight"], second["weight"])
    assert (done.stdout + done.stderr).count("lq: auto_exclude: quantization takes") == 1


def test_an_error_in_the_first_process_ends_all() -> None:
    sent: list[Any] = []
    trainer: Any = SimpleNamespace(
        is_global_zero=True, strategy=SimpleNamespace(broadcast=lambda outcome: sent.append(outcome) or outcome)
    )

    def fail() -> Any:
        raise KeyError("here")

    with pytest.raises(KeyError, match="here"):
        on_first_process(trainer, fail)
    assert isinstance(sent[0], KeyError)


class UnreadableError(Exception):
    """As of many libraries: pickle cannot make it again from its text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


def test_an_error_that_cannot_be_sent_is_told_to_the_other_processes() -> None:
    sent: list[Any] = []
    trainer: Any = SimpleNamespace(
        is_global_zero=True,
        strategy=SimpleNamespace(broadcast=lambda outcome: sent.append(pickle.dumps(outcome)) or outcome),
    )

    def fail() -> Any:
        error = UnreadableError(5, "no memory")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error

    with pytest.raises(UnreadableError, match="5: no memory"):
        on_first_process(trainer, fail)
    assert str(pickle.loads(sent[0])) == "UnreadableError in the first process: 5: no memory"


@pytest.mark.parametrize("value", [True, {"max_drop": 1.0}], ids=str)
def test_one_line_of_yaml(run_lq: Any, tmp_path: Path, value: Any, caplog: pytest.LogCaptureFixture) -> None:
    config = {
        "trainer": {
            "accelerator": "cpu",
            "fast_dev_run": True,
            "callbacks": [{"class_path": "lq.QATCallback", "init_args": {"auto_exclude": value}}],
        },
        "model": {"class_path": "lq.models.DigitsClassifier", "init_args": {"width": 4}},
        "data": {"class_path": "lq.data.DigitsDataModule"},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    with caplog.at_level("INFO"):
        run_lq("fit", "--config", "run.yaml")
    assert "lq: auto_exclude: nothing" in caplog.text


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_before_its_first_fit_a_module_stays_float(tmp_path: Path, verb: str) -> None:
    module, found = Planted(), callback()
    trainer = make_trainer(tmp_path, found, max_epochs=1)
    getattr(trainer, verb)(module, loader(), verbose=False)
    assert not is_prepared(module.model)
    trainer.save_checkpoint(tmp_path / "float.ckpt")
    assert "lq" not in torch.load(tmp_path / "float.ckpt", weights_only=True)
    trainer.fit(module, loader(), loader())
    assert float_layers(module) == [BAD]
    trainer.validate(module, loader(), verbose=False)
    assert "qat/fake/accuracy" in trainer.callback_metrics


def test_a_module_that_somebody_else_has_prepared_is_refused(tmp_path: Path) -> None:
    module = Planted()
    make_trainer(tmp_path, callback(False)).validate(module, loader(), verbose=False)
    make_trainer(tmp_path, callback()).validate(module, loader(), verbose=False)
    with pytest.raises(ValueError, match=r"this Planted was already prepared for QAT and not trained.*Fit a new"):
        make_trainer(tmp_path, callback()).fit(module, loader(), loader())


def test_a_module_is_looked_at_once_even_if_nothing_came_of_it(tmp_path: Path) -> None:
    class Stop(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
            raise KeyError("stop")

    module = Tiny()
    with pytest.raises(KeyError):
        make_trainer(tmp_path, callback(qconfig="portable"), Stop(), num_sanity_val_steps=0).fit(
            module, train_loader(), val_loader()
        )
    again = callback(qconfig="portable")
    make_trainer(tmp_path, again, max_epochs=1).fit(module, train_loader(), val_loader())
    assert again.exclusions is None
    assert float_layers(module) == []


def test_the_metric_has_to_say_which_way_it_is_better() -> None:
    with pytest.raises(
        ValueError, match=r"MeanMetric does not say .*; set higher_is_better = True \(or False\) on the"
    ):
        QATCallback(auto_exclude=True, metric=torchmetrics.MeanMetric())
    QATCallback(metric=torchmetrics.MeanMetric())


def test_the_bars_are_shown_if_those_of_the_run_are(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, bool]] = []
    make = BatchCounter.__init__

    def note(self: BatchCounter, label: str, *args: Any, shown_: list[Any] = shown, **kwargs: Any) -> None:
        shown_.append((label, kwargs.get("shown", True)))
        make(self, label, *args, **kwargs)

    monkeypatch.setattr(BatchCounter, "__init__", note)
    fit(Tiny(), callback(qconfig="portable"), max_epochs=1, enable_progress_bar=False)
    assert ("lq: calibrating", False) in shown
    assert not any(is_shown for _, is_shown in shown)


def test_a_dev_run_looks_at_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    find = find_exclusions
    monkeypatch.setattr(
        "lq.callback.exclusions.find_exclusions", lambda prepared, samples, *rest: seen.append(len(samples)) or find(
            prepared, samples, *rest
        ),
    )  # fmt: skip
    make_trainer(tmp_path, callback(), fast_dev_run=True).fit(Planted(), loader(), loader())
    assert seen == [1]


def test_a_prepared_module_with_the_same_qconfig_is_taken_as_it_is(fit: Fit) -> None:
    module = Tiny()
    module.model = prepare(module.model, QConfig(exclude=("0",)))
    fit(module, QATCallback(auto_exclude=True), max_epochs=1)
    assert qconfig_of(module.model).exclude == ("0",)
