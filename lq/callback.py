"""The Lightning callback: it decides when; functions elsewhere do what."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import nn
from torchmetrics import Metric

from lq.backends.convert import convert
from lq.backends.prepare import plan_of, prepare, self_check, state_of
from lq.deploy import Deployment, Judge, deploy
from lq.evaluation import ValidationComparison, is_own_forward
from lq.export.artifact import check_writable
from lq.qconfig import QConfig, as_qconfig
from lq.report.table import print_table
from lq.schedule import Phase, Position, QATSchedule
from lq.target import detached_copy, find_target, graft, is_grafted, prepared_graph, target_of
from lq.tracing.plan import Plan
from lq.tracing.trace import passed_parameters


class QATCallback(Callback):
    """Quantization-aware training, from float model to int8 artifact, as one callback.

    At ``setup`` the target is fused and prepared; by the schedule fake quantization starts, BatchNorm statistics
    freeze, observers stop and the learning rate is annealed; validation tracks FP32 against fake-quantized (and int8)
    metrics; at the end the best checkpoint is converted, compared with what was trained, and written to
    ``export_dir``.

    Args:
        target: dotted name of the submodule to quantize; ``None`` finds it.
        qconfig: preset name ("portable", "x86_vnni", "qnnpack", "tensorrt") or a :class:`~lq.qconfig.QConfig`.
        schedule: when things happen; see :class:`~lq.schedule.QATSchedule`.
        metric: any torchmetrics metric; ``None`` is multiclass accuracy.
        target_fn: batch -> labels; ``None`` takes the last of ``(x, y)`` or "labels"/"label"/"target"/"y" of a dict.
        int8_every_n_epochs: also convert and evaluate the true int8 model every n epochs; ``None``: only at the end.
        export_dir: directory of the artifact; ``None`` is ``<log_dir or default_root_dir>/int8``.

    Raises:
        ValueError: for what can be seen at once to be wrong; the rest is checked in ``setup``, before any training.

    Example:
        >>> QATCallback(qconfig="portable", schedule=QATSchedule(start=2, freeze_bn=4, observer_off=5)).schedule.start
        2
    """

    def __init__(
        self,
        target: str | None = None,
        qconfig: str | QConfig = "portable",
        schedule: QATSchedule | None = None,
        metric: Metric | None = None,
        target_fn: Callable[[Any], Any] | None = None,
        int8_every_n_epochs: int | None = None,
        export_dir: str | None = None,
    ) -> None:
        if int8_every_n_epochs is not None and int8_every_n_epochs < 1:
            raise ValueError(f"int8_every_n_epochs={int8_every_n_epochs} must be at least 1, or None for the end only.")
        self.target = target
        self.qconfig = as_qconfig(qconfig)
        self.schedule = schedule or QATSchedule()
        self.metric, self.target_fn = metric, target_fn
        self.int8_every_n_epochs, self.export_dir = int8_every_n_epochs, export_dir
        self.plan: Plan | None = None
        self.deployment: Deployment | None = None
        self._name = ""
        self._float: nn.Module | None = None
        self._example: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._phase: Phase | None = None
        self._started = False
        self._fp32: dict[str, float] = {}
        self._initial_lrs: list[list[float]] = []
        self._comparison: ValidationComparison | None = None
        self._loaders: Any = None

    # ---- before training ------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare the module, for every stage, so that checkpoints of a QAT run fit."""
        _check_callbacks(self, trainer)
        if is_overridden("configure_model", pl_module):
            pl_module.configure_model()
        if stage == "fit" and not _is_dev_run(trainer):
            check_writable(self._directory(trainer))
        self._prepare(pl_module)
        if stage == "fit":
            rank_zero_info(f"lq: {self.plan.summary() if self.plan else ''}")
            self._watch_first_call(pl_module)

    def _prepare(self, pl_module: LightningModule) -> None:
        if self.plan is None or not is_grafted(pl_module, self._name):
            self._name = find_target(pl_module, self.target)
        if not is_grafted(pl_module, self._name):
            module = target_of(pl_module, self._name)
            self._float = copy.deepcopy(module).cpu() if self._name else detached_copy(pl_module)
            graft(pl_module, self._name, prepare(module, self.qconfig, *self._declared_example(pl_module, module)))
        self.plan = plan_of(prepared_graph(pl_module, self._name))

    def _declared_example(self, pl_module: LightningModule, module: nn.Module) -> tuple[Any, ...]:
        """``example_input_array``, if it fits the target's forward."""
        declared = pl_module.example_input_array
        if declared is None:
            return ()
        args, kwargs = ((), declared) if isinstance(declared, dict) else (declared, {})
        args = args if isinstance(args, tuple) else (args,)
        try:
            passed_parameters(module, args, kwargs)
        except ValueError:
            return ()
        return args, kwargs

    def _check_schedule(self, trainer: Trainer) -> None:
        """Check the points against the length of this training, which is known once its data are."""
        length = _position(trainer, 0)
        for remark in self.schedule.check(length.total_epochs, length.total_steps, length.steps_per_epoch):
            rank_zero_warn(f"lq: {remark}")

    def _directory(self, trainer: Trainer) -> Path:
        return Path(self.export_dir or Path(trainer.log_dir or trainer.default_root_dir) / "int8")

    def _watch_first_call(self, pl_module: LightningModule) -> None:
        """At the target's first call, check that its graph computes what the float module does, and keep the inputs."""
        target = target_of(pl_module, self._name)
        float_model = self._float

        def first_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not is_own_forward(module):
                return
            handle.remove()
            self._example = move_data_to_device((args, kwargs), "cpu")
            if float_model is not None:
                _check_against_float(pl_module, self._name, float_model, self._example)

        handle = target.register_forward_pre_hook(first_call, with_kwargs=True)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the schedule, and note the initial learning rates before a checkpoint restores annealed ones."""
        trainer.fit_loop.setup_data()
        if not _is_dev_run(trainer):
            self._check_schedule(trainer)
        self._initial_lrs = [
            [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]
        if self.schedule.lr is not None and self._initial_lrs and self._initial_lrs[0]:
            initial = self._initial_lrs[0][0]
            low, high = initial * self.schedule.lr * self.schedule.lr_final, initial * self.schedule.lr
            rank_zero_info(
                f"lq: from QAT's start on the learning rate falls from {high:.3g} ({self.schedule.lr:.0%} of the "
                f"initial {initial:.3g}) to {low:.3g} along a cosine, whatever schedulers the module has; "
                "schedule.lr: null leaves it to them."
            )

    # ---- during training ------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the phase and the learning rate that belong to this position."""
        phase = self.schedule.phase(_position(trainer, batch_idx))
        state = state_of(target_of(pl_module, self._name))
        if phase.fake_quant and not self._started:
            self._start(pl_module)
        state.fake_quant, state.observer, state.freeze_bn = phase.fake_quant, phase.observer, phase.freeze_bn
        if self._phase is None or phase.name != self._phase.name:
            rank_zero_info(f"lq: epoch {trainer.current_epoch}, step {trainer.global_step}: {phase.name}")
        self._phase = phase
        self._apply_lr(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Set the learning rate again: a scheduler of the module may have moved it since the batch started."""
        self._apply_lr(trainer)

    def _start(self, pl_module: LightningModule) -> None:
        """Keep the float weights from which QAT starts, for the FP32 figures."""
        self._started = True
        if self._float is not None:
            trained = target_of(pl_module, self._name).state_dict()
            own = self._float.state_dict()
            self._float.load_state_dict({key: trained[key] for key in own if key in trained}, strict=False)

    def _apply_lr(self, trainer: Trainer) -> None:
        if self._phase is None or self._phase.lr_scale is None:
            return
        for optimizer, initial in zip(trainer.optimizers, self._initial_lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, initial, strict=True):
                group["lr"] = lr * self._phase.lr_scale

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the phase, and report batches that the observers had to skip."""
        if self._phase is None:
            return
        pl_module.log("qat/phase", float(self._phase.index))
        if self._phase.lr_scale is not None:
            pl_module.log("qat/lr_scale", self._phase.lr_scale)
        state = state_of(target_of(pl_module, self._name))
        skipped = [(n, c) for n, c in zip(state.names, state.nonfinite.tolist(), strict=True) if c]
        if skipped:
            rank_zero_warn(
                "lq: NaN or infinity reached fake quantizers; these batches were left out of their ranges: "
                + ", ".join(f"{name} ({count} batches)" for name, count in skipped[:5])
                + ". The first in the list is where to look; lower the learning rate or clip gradients."
            )
            state.nonfinite.zero_()

    # ---- validation -----------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to the target: FP32 is judged on the first validation after the start, the rest on every one."""
        self._loaders = trainer.val_dataloaders
        others: dict[str, nn.Module] = {}
        if not trainer.sanity_checking and self._started:
            if self._float is not None and not self._fp32:
                others["fp32"] = self._float.to(pl_module.device).eval()
            if self._int8_is_due(trainer):
                with torch.inference_mode(False), torch.no_grad():
                    others["int8"] = convert(prepared_graph(pl_module, self._name))
        target = target_of(pl_module, self._name)
        self._comparison = ValidationComparison(
            target, others, self.metric, self.target_fn, sync=True, device=pl_module.device
        )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Feed the comparison."""
        if self._comparison is not None:
            self._comparison.update(batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log ``qat/<version>/<metric>``."""
        if self._comparison is None:
            return
        results = self._comparison.finish()
        self._comparison = None
        if self._float is not None:
            self._float.cpu()
        if trainer.sanity_checking or not self._started:
            return
        self._fp32 = results.get("fp32", self._fp32)
        for version, values in results.items():
            for metric, value in values.items():
                pl_module.log(f"qat/{version}/{metric}", value)

    def _int8_is_due(self, trainer: Trainer) -> bool:
        every = self.int8_every_n_epochs
        return every is not None and (trainer.current_epoch + 1) % every == 0

    # ---- the end --------------------------------------------------------------------------------------------------

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Convert the best weights, compare, export and print the table, on rank 0."""
        if not self._started or self._example is None:
            rank_zero_warn("lq: the training ended before QAT started; nothing was quantized or exported.")
        elif trainer.is_global_zero:
            self._deploy(trainer, pl_module)
        trainer.strategy.barrier("lq_deploy")

    @rank_zero_only
    def _deploy(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._example is not None
        module = detached_copy(pl_module)
        weights = _load_best(trainer, module, self._name)
        judge = Judge(
            self._loaders,
            self.metric,
            self.target_fn,
            trainer.limit_val_batches,
            trainer.progress_bar_callback is not None,
        )
        self.deployment = deploy(
            module,
            self._name,
            self._example,
            judge,
            float_model=self._float,
            fp32_results=self._fp32,
            directory=None if _is_dev_run(trainer) else self._directory(trainer),
            manifest={"weights": weights, "schedule": vars(self.schedule), "target": self._name},
        )
        print_table(self.deployment.rows)
        for note in self.deployment.notes:
            rank_zero_info(f"lq: {note}")
        if self.deployment.directory is not None:
            rank_zero_info(f"lq: int8 model of {weights} in {self.deployment.directory}")

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers only, so that it loads with ``weights_only=True``."""
        return {"started": self._started, "fp32": dict(self._fp32)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a run; the float weights from before QAT are not in its checkpoint, their figures are."""
        self._started, self._fp32 = state_dict["started"], dict(state_dict["fp32"])
        if self._started:
            self._float = None


def _check_callbacks(own: QATCallback, trainer: Trainer) -> None:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    ours = [c for c in callbacks if isinstance(c, QATCallback)]
    if len(ours) > 1:
        raise ValueError(
            f"The Trainer has {len(ours)} QATCallbacks; one model is quantized once. Keep one of them "
            "(its qconfig.overrides can treat layers differently)."
        )
    early = [c for c in callbacks[: callbacks.index(own)] if isinstance(c, WeightAveraging)]
    if early:
        name = type(early[0]).__name__
        raise ValueError(
            f"{name} copies the model in its setup, before QATCallback has prepared it. "
            f"Put QATCallback first: callbacks=[QATCallback(...), {name}(...)]."
        )


def _is_dev_run(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _position(trainer: Trainer, batch_idx: int) -> Position:
    batches = trainer.num_training_batches
    endless = batches == float("inf")
    return Position(
        epoch=trainer.current_epoch + (0.0 if endless else batch_idx / batches),
        step=trainer.global_step,
        total_epochs=None if trainer.max_epochs in (-1, None) else float(trainer.max_epochs),
        total_steps=None if trainer.max_steps == -1 else float(trainer.max_steps),
        steps_per_epoch=None if endless else float(math.ceil(batches / trainer.accumulate_grad_batches)),
    )


def _check_against_float(
    pl_module: LightningModule, name: str, float_model: nn.Module, example: tuple[tuple[Any, ...], dict[str, Any]]
) -> None:
    args, kwargs = example
    trained = copy.deepcopy(prepared_graph(pl_module, name)).cpu()
    float_model.load_state_dict({k: v for k, v in trained.state_dict().items() if "qat_state" not in k}, strict=False)
    with torch.inference_mode(False):
        self_check(float_model, trained, args, kwargs)


def _load_best(trainer: Trainer, module: LightningModule, name: str) -> str:
    """Load the best QAT weights into ``module``; says which these are."""
    checkpoints = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    best = next((c.best_model_path for c in checkpoints if c.monitor and Path(c.best_model_path).is_file()), None)
    if best is None:
        return "the last step"
    # Written by this very run, so it may hold whatever the user's hyperparameters are.
    saved = torch.load(best, map_location="cpu", weights_only=False)["state_dict"]
    key = f"{name}.qat_state._extra_state" if name else "qat_state._extra_state"
    if not saved.get(key, {}).get("fake_quant", False):
        rank_zero_info(f"lq: the best checkpoint, {best}, is from before QAT started; converting the last weights.")
        return "the last step"
    module.load_state_dict(saved)
    return str(best)
