"""What is wrong is said before the first step, with the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torchmetrics
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lq.callback import QATCallback
from lq.config.qconfig import QConfig
from lq.config.schedule import QATSchedule
from lq.config.specs import ActivationSpec
from tests.callback.conftest import Fit
from tests.tiny import Tiny, make_trainer, qat, train_loader, val_loader


class NoStepMayRun(L.Callback):
    def on_before_optimizer_step(self, *_: Any) -> None:
        raise AssertionError("a step ran before the error came")


def _with(model: nn.Module | None, **children: nn.Module) -> Tiny:
    module = Tiny()
    module.model = model
    for name, child in children.items():
        setattr(module, name, child)
    return module


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = x * 2
        y: Tensor = self.layer(x.flatten(1))
        return y


class NoForward(Tiny):
    forward = L.LightningModule.forward


CASES: dict[str, tuple[Any, Any, str]] = {
    "no quantizable layer": (
        lambda: _with(nn.Sequential(nn.Flatten(), nn.ReLU())),
        qat,
        r"Tiny has no layer to quantize \(Linear, Conv1d, Conv2d, Conv3d\)\. Build its layers in __init__",
    ),
    "nor in the named target": (
        lambda: _with(nn.Sequential(nn.Flatten(), nn.Linear(36, 3))),
        lambda: QATCallback(target="model.0"),
        r"target='model\.0': Flatten has no layer to quantize",
    ),
    "unknown target": (
        Tiny,
        lambda: QATCallback(target="modle"),
        r"target='modle': Tiny has no such submodule\. Its children are \['model'\]",
    ),
    "target that is a layer": (
        Tiny,
        lambda: QATCallback(target="model.5"),
        r"target='model\.5' is a single Linear.*target='model', qconfig=QConfig\(include=\['5'\]\)",
    ),
    "ambiguous target": (
        lambda: NoForwardTwice(),
        qat,
        r"several parts that could be quantized: \['model', 'other'\]\. Choose one: QATCallback\(target='model'\)",
    ),
    "glob that matches nothing": (
        Tiny,
        lambda: QATCallback(qconfig=QConfig(exclude=("layer9.*",))),
        r"qconfig\.exclude: pattern 'layer9\.\*' matches no module\. Use a glob",
    ),
    "without a graph": (
        lambda: _with(Branches()),
        qat,
        r"test_errors\.py:\d+, in forward: `if x\.sum\(\) > 0:`.*QATCallback\(target=",
    ),
    "metric that does not fit": (
        Tiny,
        lambda: QATCallback(metric=torchmetrics.classification.MultilabelAccuracy(num_labels=7)),
        r"metric MultilabelAccuracy does not fit the batch.*Give a metric for this task",
    ),
    "batch without labels": (
        lambda: Unlabelled(),
        lambda: QATCallback(metric=torchmetrics.classification.MulticlassAccuracy(3)),
        r"no labels found.*give target_fn",
    ),
    "target that validation does not call": (
        lambda: _with(Tiny().model, teacher=nn.Sequential(nn.Linear(3, 3))),
        lambda: QATCallback(target="teacher"),
        r"did not call the quantized target.*QATCallback\(target=\.\.\.\)",
    ),
    "two callbacks": (
        Tiny,
        lambda: (qat(), qat()),
        r"2 QATCallbacks, but a model can be quantized only once\. Keep one",
    ),
    "points in steps before a start in epochs": (
        Tiny,
        lambda: qat(start=2, observer_off="3 steps"),
        r"observer_off='3 steps' with start=2: it lies before the start",
    ),
    "freeze in epochs before a start in percent": (
        Tiny,
        lambda: qat(start="50%", freeze_bn=1),
        r"freeze_bn=1 with start='50%': it lies before the start",
    ),
    "start behind the end": (
        Tiny,
        lambda: qat(start=7),
        r"start=7, but the training ends after 3 epochs.*Start earlier",
    ),
    "stochastic weight averaging": (
        Tiny,
        lambda: (qat(), StochasticWeightAveraging(1e-2)),
        r"StochasticWeightAveraging cannot be used.*EMAWeightAveraging",
    ),
}


class NoForwardTwice(NoForward):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(3, 3)


class Unlabelled(Tiny):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch)


@pytest.mark.parametrize("case", CASES)
def test_error_before_the_first_step(fit: Fit, case: str) -> None:
    make_module, make_callbacks, message = CASES[case]
    callbacks = make_callbacks()
    callbacks = callbacks if isinstance(callbacks, tuple) else (callbacks,)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        fit(make_module(), *callbacks, NoStepMayRun())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QATCallback(qconfig="int3"), "Unknown qconfig preset 'int3'. Choose one of"),
        (lambda: QATCallback(qconfig=QConfig(engine="tpu")), "engine 'tpu' is not supported by this CPU's torch"),
        (lambda: QATSchedule(start=4, observer_off=3), "it lies before the start"),
        (lambda: QATSchedule(start=4, freeze_bn=3), "it lies before the start"),
        (lambda: QATSchedule(start=1.5), "a float is a share of the training"),
        (lambda: QATSchedule(start=-1), "it must be 0 or more"),
        (lambda: QATCallback(int8_every_n_epochs=0), "int8_every_n_epochs=0 must be at least 1"),
        (lambda: QATCallback(metric="accuracy"), "metric='accuracy' (str) is not a torchmetrics metric"),
    ],
)
def test_error_in_the_constructor(make: Any, message: str) -> None:
    import re

    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("place", "error"), [("file", NotADirectoryError), ("file/int8", NotADirectoryError), ("full", FileExistsError)]
)
def test_export_directory_that_cannot_be_written(fit: Fit, tmp_path: Path, place: str, error: type[OSError]) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(error, match=r"[Cc]hoose"):
        fit(Tiny(), QATCallback(export_dir=str(tmp_path / place)), NoStepMayRun())
    assert (tmp_path / "full" / "thesis.tex").exists()


def test_int8_model_that_cannot_be_exported_is_found_at_the_first_batch(fit: Fit) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(36, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x.flatten(1))
            return y if float(y.mean()) > 0 else -y

    class Branched(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.model = Branching()

    with pytest.raises(ValueError, match=r"(?s)test_errors\.py.*mean"):
        fit(Branched(), qat(), NoStepMayRun())


def test_sixteen_bits_in_a_file_without_them_are_found_at_the_first_batch(fit: Fit) -> None:
    wide = QConfig("qnn", activation=ActivationSpec(0, 65535))
    with pytest.raises(ValueError, match=r"exporter 'torch' does not support 16-bit activations, .* export only 'qnn'"):
        fit(Tiny(), QATCallback(qconfig=wide, exporters=["torch"]), NoStepMayRun())
    pytest.importorskip("onnxruntime_qnn")
    with pytest.raises(ValueError, match=r"^int8_every_n_epochs=2: PyTorch does not support 16-bit activations"):
        fit(Tiny(), QATCallback(qconfig=wide, exporters=["qnn"], int8_every_n_epochs=2), NoStepMayRun())


def test_a_constant_that_is_not_the_default_is_exported(fit: Fit) -> None:
    class Flagged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(36, 3)

        def forward(self, x: Tensor, temperature: float = 1.0) -> Tensor:
            y: Tensor = self.layer(x.flatten(1)) / temperature
            return y

    class Hot(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.model = Flagged()

        def forward(self, x: Tensor) -> Any:
            return self.model(x, 2.0)

    callback = qat()
    fit(Hot(), callback, max_epochs=1)
    assert callback.deployment is not None
    assert callback.deployment.parity["torch"].passed


def test_unreached_points_are_remarked(fit: Fit) -> None:
    with pytest.warns(UserWarning, match="observer_off=9 is never reached"):
        fit(Tiny(), qat(observer_off=9), max_epochs=1)


def test_training_that_ends_before_qat_starts_says_so(fit: Fit) -> None:
    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            trainer.should_stop = True

    callback = qat(start=2)
    with pytest.warns(UserWarning, match="the training ended before QAT started; nothing was quantized"):
        fit(Tiny(), callback, Stop())
    assert callback.deployment is None


class NotAsked(MulticlassAccuracy):
    """Processes would wait for each other to compute it, but only one has failed."""

    def compute(self) -> Tensor:
        raise AssertionError("computed")


def test_nothing_listens_and_nothing_is_computed_after_an_error(tmp_path: Path) -> None:
    class Fails(Tiny):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            raise RuntimeError("mine")

    module = Fails()
    with pytest.raises(RuntimeError, match="mine"):
        make_trainer(tmp_path, QATCallback(metric=NotAsked(3))).fit(module, train_loader(), val_loader())
    assert not module.model._forward_hooks
    assert not module.model._forward_pre_hooks
