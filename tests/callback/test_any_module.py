"""LightningModules of other shapes: what calls the target, what it returns, which package it comes from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

from lq.backends.prepare import plan_of, prepare, set_phase, state_of
from lq.callback import QATCallback
from lq.callback.coverage import check_reached, take_in_exchanged, take_unplanned
from lq.config.schedule import QATSchedule
from lq.export.artifact.int8_model import load
from tests.callback.conftest import Fit
from tests.tiny import Late, Tiny, make_net, make_trainer, qat, train_loader, val_loader


class CallsForward(Tiny):
    """``self.forward(x)``, which no hook hears."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.model(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.forward(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.forward(batch[0])


class CallsParts(CallsForward):
    """Trains through its parts, one by one."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.head(self.model(batch[0])), batch[1])


@pytest.mark.parametrize(("make", "validates"), [(CallsForward, True), (CallsForward, False), (CallsParts, True)])
def test_a_target_may_be_called_in_any_way(tmp_path: Path, make: Any, validates: bool) -> None:
    module, callback = make(), QATCallback(target="")
    trainer = make_trainer(tmp_path, callback, max_epochs=2, limit_val_batches=1.0 if validates else 0)
    trainer.fit(module, train_loader(), val_loader())
    assert torch.isfinite(state_of(module).min_val).all(), "every range has seen its tensor"
    assert callback.deployment is not None
    assert callback.deployment.parity["torch"].passed


def test_without_a_call_of_the_whole_an_example_is_asked_for_at_once(tmp_path: Path) -> None:
    steps: list[int] = []

    class Counts(CallsParts):
        def on_train_batch_end(self, *_: Any) -> None:
            steps.append(1)

    trainer = make_trainer(tmp_path, QATCallback(target=""), max_epochs=2, limit_val_batches=0)
    with pytest.raises(ValueError, match=r"calls parts of the module itself.*example_input_array of Counts"):
        trainer.fit(Counts(), train_loader(), val_loader())
    assert len(steps) <= 1


def test_a_target_that_no_step_calls_is_refused_after_the_first_batch(fit: Fit) -> None:
    class Unused(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = make_net()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.teacher(batch[0])

    with pytest.raises(ValueError, match=r"first training step did not call the target, teacher.*QATCallback\(target="):
        fit(Unused(), QATCallback(target="teacher"), max_epochs=1)


def test_so_is_one_that_would_be_planned_at_its_first_call(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()

        def forward(self, x: Tensor) -> Any:
            return self.net(x) if x.mean() > 0 else self.net(-x)

    class Unused(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = Branches()

    trainer = make_trainer(tmp_path, QATCallback(target="teacher"), max_epochs=1, limit_val_batches=0)
    with pytest.raises(ValueError, match=r"did not call the target, teacher.*QATCallback\(target="):
        trainer.fit(Unused(), train_loader(), val_loader())


def test_code_that_is_not_plain_is_planned_at_the_first_call(tmp_path: Path) -> None:
    class Checks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()

        def forward(self, x: Tensor, **_: Any) -> dict[str, Tensor]:
            if x.shape[-1] % 2 != 0:
                raise RuntimeError("give images whose sides are even")
            return {"scores": self.net(x)}

    class Lit(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.model = Checks()

        def forward(self, x: Tensor) -> Any:
            return self.model(x, unused=True)["scores"]

    callback = qat()
    make_trainer(tmp_path, callback, max_epochs=2, limit_val_batches=0).fit(Lit(), train_loader(), val_loader())
    assert callback.plan is not None
    assert callback.plan.share == 1.0
    assert callback.deployment is not None
    assert callback.deployment.parity["torch"].passed


class Normalizes(Tiny):
    def forward(self, x: Tensor) -> Any:
        return self.model((x - 0.5) / 0.05)


def test_a_forward_that_does_more_than_call_the_target_is_said(fit: Fit) -> None:
    with pytest.warns(UserWarning, match=r"Normalizes\.forward does more than call model \(before it\).*target=''"):
        fit(Normalizes(), qat(), max_epochs=1)
    whole = QATCallback(target="")
    module = Normalizes()
    fit(module, whole, max_epochs=1)
    assert whole.deployment is not None
    assert whole.deployment.directory is not None
    x = torch.randn(4, 1, 6, 6)
    torch.testing.assert_close(load(whole.deployment.directory)(x), module.eval()(x), rtol=0.05, atol=0.05)


def _float_checkpoint(tmp_path: Path) -> Path:
    trainer = make_trainer(tmp_path, max_epochs=3)
    trainer.fit(Tiny(), train_loader(), val_loader())
    trainer.save_checkpoint(tmp_path / "float.ckpt")
    return tmp_path / "float.ckpt"


def test_a_float_checkpoint_starts_qat_for_what_is_left(tmp_path: Path) -> None:
    path, callback = _float_checkpoint(tmp_path), QATCallback()
    make_trainer(tmp_path, callback, max_epochs=5).fit(Tiny(), train_loader(), val_loader(), ckpt_path=path)
    assert callback._course.schedule.start == "9 steps"
    assert callback.deployment is not None
    assert callback.deployment.parity["torch"].passed


def test_points_that_lie_before_the_checkpoint_are_refused(tmp_path: Path) -> None:
    path = _float_checkpoint(tmp_path)
    callback = QATCallback(schedule=QATSchedule(observer_off=2))
    with pytest.raises(ValueError, match=r"observer_off=2 with start='9 steps'.*before the start"):
        make_trainer(tmp_path, callback, max_epochs=5).fit(Tiny(), train_loader(), val_loader(), ckpt_path=path)


def test_nothing_is_judged_on_a_guess(fit: Fit) -> None:
    class Indexed(Tiny):
        """Batches of three: images, labels, and numbers that are no labels."""

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return (*batch, torch.arange(len(batch[1])) % 2)

    callback = qat()
    trainer = fit(Indexed(), callback, max_epochs=1)
    assert callback.deployment is not None
    assert callback.deployment.results["fake"].keys() == {"val_loss"}  # what the module itself logs
    assert callback.deployment.results["torch_vs_fake"]["sqnr_db"] > 25
    assert not [name for name in trainer.callback_metrics if name.endswith("accuracy")]


def test_a_regression_needs_no_metric(fit: Fit) -> None:
    class Regression(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.mse_loss(self(batch[0])[:, 0], batch[0].mean((1, 2, 3)))

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0], batch[0].mean((1, 2, 3))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("mse", F.mse_loss(self(batch[0])[:, 0], batch[1]))

    callback = qat()
    fit(Regression(), callback, max_epochs=1)
    assert callback.deployment is not None
    assert callback.deployment.parity["torch"].passed


def test_calls_that_nobody_planned_are_counted_and_said() -> None:
    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.rounds = nn.Linear(4, 4), 1

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.rounds):
                x = self.layer(x)
            return x

    x = torch.randn(3, 4)
    prepared: Any = prepare(Grows(), example_args=(x,))
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    prepared.train()(x)
    assert check_reached(prepared, "") is None
    assert take_unplanned(prepared) is None
    prepared.rounds = 3
    prepared(x)
    said = take_unplanned(prepared)
    assert said is not None
    assert "lq: calls in this epoch are not in the plan" in said
    assert "layer.linear (2 times)" in said
    assert take_unplanned(prepared) is None


def test_modules_that_are_exchanged_are_taken_in_and_said() -> None:
    prepared: Any = prepare(
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), example_args=(torch.ones(2, 4),)
    )
    assert take_in_exchanged(prepared) is None
    prepared[0] = nn.Linear(4, 4)
    said = take_in_exchanged(prepared)
    assert said is not None
    assert "0 (Linear)" in said
    assert take_in_exchanged(prepared) is None


def test_a_module_of_the_other_package(tmp_path: Path) -> None:
    other = pytest.importorskip("pytorch_lightning")

    class Lit(other.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = make_net()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("loss", F.cross_entropy(self.model(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    callback = qat()
    trainer = other.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[callback],
    )  # fmt: skip
    trainer.fit(Lit(), train_loader(), val_loader())
    assert callback.deployment is not None
    assert "accuracy" in callback.deployment.results["torch"]
    assert callback.deployment.parity["torch"].passed


def test_the_target_stays_the_users_object(fit: Fit) -> None:
    module = Tiny()
    target, order = module.model, [name for name, _ in module.named_parameters()]
    last = module.model[-1]
    keys = list(copy.deepcopy(module).state_dict())
    fit(module, qat(), max_epochs=1)
    assert module.model is target
    assert module.model[-1] is last
    assert [name for name, _ in module.named_parameters()] == order
    assert [key for key in module.state_dict() if "qat_state" not in key] == keys
    assert plan_of(module.model).sites is not None


class EvalInStep(Tiny):
    """Trains in evaluation mode, and looks at its own predictions before."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.model.train()
        with torch.no_grad():
            self.model.eval()
            self.model(1000 * batch[0])  # no training: not observed
        self.model.eval()
        return super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
@pytest.mark.parametrize("save_memory", [False, True])
@pytest.mark.parametrize("kind", [Tiny, EvalInStep])
def test_a_target_in_evaluation_mode_is_observed_and_stays_in_it(fit: Fit, save_memory: bool, kind: Any) -> None:
    module = kind()
    module.model.eval()  # as from_pretrained leaves it; Lightning keeps that
    norm = next(part for part in module.model.modules() if isinstance(part, nn.BatchNorm2d))
    mean, weight = norm.running_mean.clone(), module.model[0].weight.detach().clone()
    callback = QATCallback(schedule=QATSchedule(), save="bytes" if save_memory else "floats")
    fit(module, callback, max_epochs=2)
    assert callback.deployment is not None
    assert callback.deployment.parity["torch"].passed
    assert torch.equal(norm.running_mean, mean)
    assert not torch.equal(module.model[0].weight, weight)
    assert not any(part.training for part in module.model.modules())
    assert float(state_of(module.model).max_val.max()) < 100


def test_a_target_that_no_step_calls_is_refused_long_before_a_late_start(fit: Fit) -> None:
    class Other(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.other, self.steps = make_net(), 0

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.steps += 1
            return F.cross_entropy(self.other(batch[0]), batch[1])

    module = Other()
    with pytest.raises(ValueError, match="Nothing in the first epoch of training called the target, model"):
        fit(module, QATCallback(target="model", schedule=QATSchedule(start=2)))
    assert module.steps == 3


class Skips(Tiny):
    """Leaves out its first batch, as one of broken samples."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx == 0 and self.current_epoch == 0 else super().training_step(batch, batch_idx)


class TakesTurns(Tiny):
    """Trains something else first."""

    def __init__(self, turns: int = 2) -> None:
        super().__init__()
        self.automatic_optimization, self.turns = False, turns
        self.other = make_net()

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        network = self.model if batch_idx % self.turns == 1 else self.other
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(network(batch[0]), batch[1]))
        optimizer.step()


@pytest.mark.filterwarnings("ignore:.*returned `None`")
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("kind", [Skips, TakesTurns])
def test_a_first_batch_without_a_call_of_the_target_is_no_reason_to_stop(fit: Fit, kind: Any, start: int) -> None:
    module = kind()
    fit(module, QATCallback(target="model", schedule=QATSchedule(start=start)))
    assert all(state_of(module.model).observed())


def test_a_whole_epoch_is_one_also_if_steps_return_nothing(fit: Fit) -> None:
    with pytest.raises(ValueError, match="Nothing in the first epoch of training called the target, model"):
        fit(TakesTurns(turns=1), QATCallback(target="model"))


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_sanity_check_may_be_the_first_call_of_layers_that_are_built_late(fit: Fit, precision: str) -> None:
    class Built(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.model = None

        def configure_model(self) -> None:
            if self.model is None:
                self.model = Attends().model

    module = Built()
    fit(module, QATCallback(), precision=precision)
    assert all(state_of(module.model).observed())


class Attends(Tiny):
    """Its code cannot be read, so it is planned at its first call."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.model = nn.Sequential(nn.Flatten(1, 2), layer, nn.Flatten(), nn.Linear(36, 3))


def test_a_validation_before_the_fit_may_be_the_first_call(fit: Fit, tmp_path: Path) -> None:
    module = Attends()
    make_trainer(tmp_path, QATCallback()).validate(module, val_loader(), verbose=False)
    assert not any(buffer.is_inference() for buffer in module.buffers())
    fit(module, QATCallback())
    assert all(state_of(module.model).observed())


class Lazy(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_lazy_layers_are_trained_and_resumed(fit: Fit, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole, resumed = Lazy(), Lazy()
    for module, ckpt_path in ((whole, None), (resumed, tmp_path / "epoch=0.ckpt")):
        fit(module, QATCallback(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1), ckpt_path=ckpt_path)
    assert all(map(torch.equal, _tensors(whole), _tensors(resumed)))


def test_lazy_layers_that_nothing_can_initialize_are_told(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, QATCallback(), limit_val_batches=0)
    with pytest.raises(ValueError, match=r"model has lazy layers.*example_input_array"):
        trainer.fit(Lazy(), train_loader(), val_loader())


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_configure_model_builds_the_same_weights_as_without_lq(fit: Fit, precision: str) -> None:
    class Noted(Late):
        def on_train_start(self) -> None:
            self.first = [parameter.detach().clone() for parameter in self.model.parameters()]

    with_lq, without = Noted(), Noted()
    for module, callbacks in ((with_lq, [QATCallback(schedule=QATSchedule(start=1))]), (without, [])):
        torch.manual_seed(0)
        fit(module, *callbacks, precision=precision, max_epochs=2)
    assert all(map(torch.equal, with_lq.first, without.first))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
