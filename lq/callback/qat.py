"""The callback itself: hooks, each of a few lines."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle
from torchmetrics import Metric, MetricCollection

from lq.backends.convert import convert
from lq.backends.prepare import plan_of, prepare, qconfig_of, state_of
from lq.callback.averaging import check_averaging, share_quantization_state
from lq.callback.best import load_best
from lq.callback.first_call import check_first_call, watch_first_call
from lq.callback.learning_rate import InitialLearningRates
from lq.callback.processes import others_wait
from lq.callback.progress import (
    close_progress_bar,
    describe_learning_rate,
    describe_phase,
    is_dev_run,
    position_of,
    say,
)
from lq.deploy import Baseline, Deployment, deploy
from lq.evaluation import Inputs, Judge, ValidationComparison
from lq.export.artifact import check_writable
from lq.qconfig import QConfig, as_qconfig
from lq.report.table import print_table
from lq.schedule import Phase, QATSchedule
from lq.target import (
    detached_copy,
    find_target,
    float_state,
    graft,
    is_grafted,
    prepared_graph,
    target_of,
)
from lq.tracing.plan import Plan
from lq.tracing.trace import passed_parameters

_CHECKPOINT_KEY = "lq"


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
        TypeError: if ``metric`` is not a torchmetrics metric.
        ValueError: for what can be seen at once to be wrong; the rest is checked before the first step of a training.

    Example:
        >>> QATCallback(qconfig="portable", schedule=QATSchedule(start=2, freeze_bn=4, observer_off=5)).schedule.start
        2
    """

    def __init__(
        self,
        target: str | None = None,
        qconfig: str | QConfig = "portable",
        schedule: QATSchedule | None = None,
        metric: Metric | MetricCollection | None = None,
        target_fn: Callable[[Any], Any] | None = None,
        int8_every_n_epochs: int | None = None,
        export_dir: str | None = None,
    ) -> None:
        if int8_every_n_epochs is not None and int8_every_n_epochs < 1:
            raise ValueError(f"int8_every_n_epochs={int8_every_n_epochs} must be at least 1, or None for the end only.")
        if metric is not None and not isinstance(metric, (Metric, MetricCollection)):
            raise TypeError(
                f"metric={metric!r} ({type(metric).__name__}) is not a torchmetrics metric; "
                "write e.g. metric=torchmetrics.classification.BinaryF1Score()."
            )
        self.target = target
        self.qconfig = as_qconfig(qconfig)
        self.schedule = schedule or QATSchedule()
        self.metric, self.target_fn = metric, target_fn
        self.int8_every_n_epochs, self.export_dir = int8_every_n_epochs, export_dir
        self.plan: Plan | None = None
        self.deployment: Deployment | None = None
        self._name = ""
        self._float: nn.Module | None = None
        self._reset()

    def _reset(self) -> None:
        """Forget the last run."""
        self._course = self.schedule
        self._directory: Path | None = None
        self._example: Inputs | None = None
        self._phase: Phase | None = None
        self._started = False
        self._float_has_weights = True
        self._fp32: dict[str, float] = {}
        self._rates = InitialLearningRates([])
        self._comparison: ValidationComparison | None = None
        self._first_call: RemovableHandle | None = None
        self._loaders: Any = None
        self._frozen: list[nn.Module] = []

    # ---- before training ------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare the module, for every stage, so that checkpoints of a QAT run fit."""
        self._check_callbacks(trainer)
        if stage == "fit":
            self._reset()
            if is_dev_run(trainer):  # a few steps, which shall try all that a run does
                self._course = replace(self.schedule, start=0, freeze_bn=None, observer_off=None)
            self._directory = self._choose_directory(trainer)
        self._prepare(pl_module)
        if stage == "fit":
            rank_zero_info(f"lq: {self._name or 'the module itself'}: {self.plan.summary() if self.plan else ''}")
            self._first_call = watch_first_call(pl_module, self._name, lambda inputs: self._check(pl_module, inputs))

    def _check_callbacks(self, trainer: Trainer) -> None:
        count = sum(isinstance(c, QATCallback) for c in trainer.callbacks)  # type: ignore[attr-defined]
        if count > 1:
            raise ValueError(
                f"The Trainer has {count} QATCallbacks; one model is quantized once. Keep one of them "
                "(its qconfig.overrides can treat layers differently)."
            )
        check_averaging(self, trainer)

    def _choose_directory(self, trainer: Trainer) -> Path | None:
        # On every rank: log_dir is a collective.
        directory = Path(self.export_dir or Path(trainer.log_dir or trainer.default_root_dir) / "int8")
        if is_dev_run(trainer):
            return None
        if trainer.is_global_zero:
            check_writable(directory)
        return directory

    def _prepare(self, pl_module: LightningModule) -> None:
        configured = is_overridden("configure_model", pl_module)
        if configured:
            pl_module.configure_model()
        self._name = find_target(pl_module, self.target)
        if is_grafted(pl_module, self._name):
            self._check_same_qconfig(pl_module)
        else:
            self._graft(pl_module)
        if configured:
            self._check_configure_model(pl_module)
        self.plan = plan_of(target_of(pl_module, self._name))

    def _graft(self, pl_module: LightningModule) -> None:
        module = target_of(pl_module, self._name)
        self._float = (copy.deepcopy(module).cpu() if self._name else detached_copy(pl_module)).float()
        graft(pl_module, self._name, prepare(module, self.qconfig, *_declared_example(pl_module, module)))

    def _check_same_qconfig(self, pl_module: LightningModule) -> None:
        theirs = qconfig_of(target_of(pl_module, self._name))
        if theirs != self.qconfig:
            raise ValueError(
                f"{type(pl_module).__name__} was prepared for QAT before, with {theirs}, but this QATCallback has "
                f"{self.qconfig}. Use the same qconfig, or start from a new module."
            )

    def _check_configure_model(self, pl_module: LightningModule) -> None:
        pl_module.configure_model()  # as Lightning is going to
        if not is_grafted(pl_module, self._name):
            raise ValueError(
                f"{type(pl_module).__name__}.configure_model() builds the layers anew each time it is called, which "
                "undoes the preparation for QAT. Lightning wants it to build them once: begin with "
                "`if self.model is not None: return`, with self.model = None in __init__."
            )

    def _check(self, pl_module: LightningModule, example: Inputs) -> None:
        self._example = example
        if self._float is not None and self._float_has_weights:
            check_first_call(pl_module, self._name, self._float, example)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the initial learning rates before a checkpoint restores annealed ones."""
        self._rates = InitialLearningRates(trainer.optimizers)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the schedule against the length of this training, which is known by now."""
        length = position_of(trainer, 0)
        for remark in self._course.check(length.total_epochs, length.total_steps, length.steps_per_epoch):
            rank_zero_warn(f"lq: {remark}")

    # ---- during training ------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the learning rate of the first step before monitors read it."""
        self._rates.apply(trainer.optimizers, self._course.phase(position_of(trainer, 0)).lr_scale)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the phase and the learning rate that belong to this position."""
        phase = self._course.phase(position_of(trainer, batch_idx))
        if phase.fake_quant and not self._started:
            self._start(pl_module)
        state = state_of(target_of(pl_module, self._name))
        state.fake_quant, state.observer, state.freeze_bn = phase.fake_quant, phase.observer, phase.freeze_bn
        if phase.freeze_bn:
            self._freeze_batch_norms(target_of(pl_module, self._name))
        if self._phase is None and self._rates.first is not None:
            say(trainer, describe_learning_rate(self._course, self._rates.first))
        if self._phase is None or phase.index != self._phase.index:
            say(trainer, describe_phase(trainer, self._course, phase))
        self._phase = phase
        self._rates.apply(trainer.optimizers, phase.lr_scale)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Set the learning rate again: a scheduler of the module may have moved it since the batch started."""
        if self._phase is not None:
            self._rates.apply(trainer.optimizers, self._phase.lr_scale)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Undo what a scheduler of the module did, so that monitors and checkpoints see the rate that is used next."""
        self._rates.apply(trainer.optimizers, self._course.phase(position_of(trainer, batch_idx + 1)).lr_scale)

    def _start(self, pl_module: LightningModule) -> None:
        """Keep the float weights from which QAT starts, for the FP32 figures."""
        self._started = True
        if self._float is not None:
            self._float.load_state_dict(float_state(target_of(pl_module, self._name)))

    def _freeze_batch_norms(self, target: nn.Module) -> None:
        """Stop those too that no layer has absorbed."""
        for module in target.modules():
            if isinstance(module, _BatchNorm) and module.training:
                self._frozen.append(module.eval())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the phase, and report batches that the observers had to skip."""
        if self._phase is None:
            return
        # The same in all processes; reducing them says so to Lightning.
        pl_module.log("qat/phase", float(self._phase.index), sync_dist=True)
        if self._phase.lr_scale is not None:
            pl_module.log("qat/lr_scale", self._phase.lr_scale, sync_dist=True)
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
        share_quantization_state(trainer, pl_module, self._name)
        target = target_of(pl_module, self._name)
        others: dict[str, nn.Module] = {}
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._started:
            if self._float is not None and self._float_has_weights and not self._fp32:
                others["fp32"] = self._float.to(pl_module.device).eval()
            if self._int8_is_due(trainer):
                with torch.inference_mode(False), torch.no_grad():
                    others["int8"] = convert(prepared_graph(pl_module, self._name))
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
        if trainer.sanity_checking or not state_of(target_of(pl_module, self._name)).fake_quant:
            return
        self._fp32 = results.get("fp32", self._fp32)
        for version, values in results.items():
            for metric, value in values.items():
                pl_module.log(f"qat/{version}/{metric}", value, sync_dist=True)

    def _int8_is_due(self, trainer: Trainer) -> bool:
        every = self.int8_every_n_epochs
        return every is not None and (trainer.current_epoch + 1) % every == 0

    # ---- the end --------------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before averaging callbacks put their weights into the module."""
        share_quantization_state(trainer, pl_module, self._name)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._stop_listening()

    def _stop_listening(self) -> None:
        if self._first_call is not None:
            self._first_call.remove()
        if self._comparison is not None:
            self._comparison.finish()
        self._first_call = self._comparison = None
        for module in self._frozen:
            module.train()
        self._frozen = []

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Convert the best weights, compare, export and print the table, on rank 0."""
        self._stop_listening()
        if not self._started or self._example is None:
            rank_zero_warn("lq: the training ended before QAT started; nothing was quantized or exported.")
        else:
            with others_wait():
                if trainer.is_global_zero:
                    self._deploy(trainer, pl_module, self._example)

    def _deploy(self, trainer: Trainer, pl_module: LightningModule, example: Inputs) -> None:
        close_progress_bar(trainer, pl_module)
        module = detached_copy(pl_module)
        weights = load_best(trainer, module, self._name)
        rank_zero_info(f"lq: converting the weights of {weights}, and comparing them on the validation data")
        self.deployment = deploy(
            module,
            self._name,
            example,
            Judge(
                self._loaders,
                trainer.datamodule,  # type: ignore[attr-defined]
                self.metric,
                self.target_fn,
                trainer.limit_val_batches,
                show_progress=trainer.progress_bar_callback is not None,
            ),
            baseline=Baseline(self._float, self._fp32, self._float_has_weights),
            directory=self._directory,
            manifest={"weights": weights, "schedule": vars(self.schedule), "target": self._name},
        )
        print_table(self.deployment.rows)
        for note in self.deployment.notes:
            rank_zero_info(f"lq: {note}")
        if self.deployment.directory is not None:
            rank_zero_info(f"lq: int8 model in {self.deployment.directory}")

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    # Not state_dict(): Lightning refuses two stateful callbacks of a class before this one can say what to do.
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add plain numbers only, so that it loads with ``weights_only=True``."""
        share_quantization_state(trainer, pl_module, self._name)
        checkpoint[_CHECKPOINT_KEY] = {"started": self._started, "fp32": dict(self._fp32)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up a run; the float weights from before QAT are not in its checkpoint, their figures are."""
        saved = checkpoint.get(_CHECKPOINT_KEY)
        if saved is None:
            rank_zero_info("lq: the checkpoint is one of the float model")
            return
        self._started, self._fp32 = saved["started"], dict(saved["fp32"])
        self._float_has_weights = not self._started


def _declared_example(pl_module: LightningModule, module: nn.Module) -> tuple[Any, ...]:
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
