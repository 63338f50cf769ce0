"""The callback itself: hooks, each of a few lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from torchmetrics import Metric, MetricCollection

from lq.analysis.auto_exclude import AutoExclude
from lq.analysis.bits import AutoBits, BitChoice
from lq.analysis.exclusions import Exclusions
from lq.analysis.tensors import has_ranges
from lq.backends.prepare import is_planned, plan_of, set_phase, state_of
from lq.backends.saving import check_saving, set_saving
from lq.callback.announcements import close_progress_bar, describe_no_result
from lq.callback.averaging import averages_of, check_averaging, check_finetuning, share_quantization_state
from lq.callback.best import Kept, kept_so_far
from lq.callback.bits import BitSearch, wanted_bits
from lq.callback.candidates import StartingPoint, judge_start
from lq.callback.checkpoint_to_load import checkpoint_to_load, require_qat_state
from lq.callback.compilation import CompilationPause, is_compiled
from lq.callback.course import Course
from lq.callback.coverage import take_in_exchanged, take_unplanned
from lq.callback.deployment import deploy_best
from lq.callback.destination import choose_destination
from lq.callback.distillation import Distillation, Teacher, check_teaching
from lq.callback.example import check_example, example_without_training, validation_loaders
from lq.callback.exclusions import ExclusionSearch, as_auto_exclude
from lq.callback.first_call import check_first_call
from lq.callback.first_steps import FirstSteps
from lq.callback.float_reference import FloatReference
from lq.callback.float_start import start_from
from lq.callback.history import History
from lq.callback.monitors import check_monitor, counting_figure, higher_is_better, require_figure, serve_monitors
from lq.callback.phases import share_statistics, take_nonfinite
from lq.callback.preparation import check_still_prepared, choose_target, prepare_target
from lq.callback.processes import check_strategy, copy_on_first_process, splits_weights
from lq.callback.progress import is_dev_run, require_epochs_left
from lq.callback.ranges import RangeMonitor, check_detail
from lq.callback.search import Search, choose_qconfig
from lq.callback.settings import as_export_settings, check_searches, check_settings
from lq.callback.sizes import SizeWatch
from lq.callback.validation import ValidationRound, figures_of, log_at_the_end
from lq.checkpoints.entry import KEY, TEACHER, CheckpointEntry
from lq.checks import as_dataclass
from lq.compat.lightning_private import validation_loaders_of
from lq.config.qconfig import QConfig
from lq.config.reading import as_qconfig
from lq.config.schedule import QATSchedule
from lq.conversion.wide import check_eight_bits
from lq.deployment.destination import Destination
from lq.deployment.evaluation import Results, ValidationData
from lq.deployment.results import Deployment
from lq.export.artifact.scratch import scratch_beside
from lq.export.parity.gate import Gate
from lq.lightning_module.target import is_target_prepared, target_of
from lq.tracing.exported_call import call_to_export
from lq.tracing.plan import Plan
from lq.tracing.structure import Inputs


class QATCallback(Callback):
    """Quantization-aware training, from float model to int8 artifact, as one callback.

    In ``setup`` the target is prepared. During training the schedule starts fake quantization, freezes the BatchNorm
    statistics, stops the observers and lowers the learning rate. Validation logs the figures of FP32, of the
    fake-quantized model and, if wanted, of the int8 model. At the end the best checkpoint is converted, compared with
    the fake-quantized model, and written to ``export_dir``.

    Args:
        target: dotted name of the submodule to quantize; ``None`` finds it.
        qconfig: preset name ("portable", "x86_vnni", "openvino", "qnnpack", "tensorrt", "litert", "mcu", "qnn"), a YAML
            file such as that of ``lq bits``, or a :class:`~lq.config.qconfig.QConfig`.
        schedule: when things happen; see :class:`~lq.config.schedule.QATSchedule`.
        monitor: name of a figure that ``validation_step`` logs; the gate and ``auto_exclude`` use it. ``None`` takes
            what a ModelCheckpoint monitors.
        mode: "min" if a lower ``monitor`` is better, "max" if a higher one is; ``None`` takes that of the
            ModelCheckpoint.
        metric: a metric of torchmetrics, logged in addition; ``None`` is multiclass accuracy where batches are inputs
            and class numbers, and no metric elsewhere.
        target_fn: batch -> labels of the metric; ``None`` takes the last of ``(x, y)`` or
            "labels"/"label"/"target"/"y" of a dict.
        int8_every_n_epochs: also convert and evaluate the true int8 model every n epochs; ``None``: only at the end.
        export_dir: directory or URL of the artifact; ``None`` is ``<log_dir or default_root_dir>/int8``.
        exporters: what the artifact holds: "torch", "onnx", "tensorrt", "qnn", "pt2", "openvino", "executorch",
            "litert", "mcu", or ``{name: options}``; the first is what :func:`lq.load` loads by default.
        dynamic_axes: for each input of the target, dimensions beside the batch whose size the files shall leave open,
            as a list or as a mapping to names: ``{"x": {2: "height", 3: "width"}}``.
        gate: how closely each file has to agree with the fake-quantized model; see :class:`lq.Gate`.
        auto_exclude: before the first step, look for a few layers that quantization hurts, and leave them in float; see
            :class:`~lq.analysis.auto_exclude.AutoExclude`. ``exclusions`` and the checkpoints say which.
        auto_bits: before the first step, choose the bits of each layer's weight such that a budget such as "size=2.5MB"
            or "latency=0.6@onnx" is kept and the output changes least; see
            :class:`~lq.analysis.bits.settings.AutoBits`. ``bits`` and the checkpoints say which.
        distill: train the quantized model to predict what the float model predicts, which costs one float forward a
            step; see :class:`~lq.callback.distillation.Distillation`.
        log_ranges: "summary" logs the worst saturation, use of levels, dead channels and drift of scales under
            ``qat/ranges/``; "tensors" also logs those of each activation, to the loggers; ``None`` logs neither.
        save: as what a step keeps quantized tensors for its backward pass: "floats", or "bytes", which takes a fraction
            of the memory, gives the same gradients to the bit, and takes longer; see :func:`lq.set_saving`.
        float_ckpt_path: checkpoint of the float training, whose weights the module takes before QAT. A run that goes on
            from a checkpoint of its own does not read it.

    ``qconfig``, ``schedule``, ``gate``, ``auto_exclude``, ``auto_bits`` and ``distill`` may be mappings of their
    settings, as in YAML.

    Raises:
        TypeError: if a setting has the wrong type, such as a ``metric`` that is not from torchmetrics.
        ImportError: if an exporter needs a package that is not installed.
        ValueError: if a setting is wrong. What depends on module and data is checked before the first training step.

    Example:
        >>> QATCallback(qconfig="portable", schedule=QATSchedule(start=2, freeze_bn=4, observer_off=5)).schedule.start
        2
    """

    def __init__(
        self,
        target: str | None = None,
        qconfig: str | QConfig = "portable",
        schedule: QATSchedule | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        metric: Metric | MetricCollection | None = None,
        target_fn: Callable[[Any], Any] | None = None,
        int8_every_n_epochs: int | None = None,
        export_dir: str | None = None,
        exporters: Sequence[str | dict[str, dict[str, Any]]] = ("torch",),
        dynamic_axes: dict[str, list[int] | dict[int, str]] | None = None,
        gate: Gate | None = None,
        auto_exclude: bool | AutoExclude = False,
        auto_bits: str | AutoBits | None = None,
        distill: Distillation | None = None,
        log_ranges: Literal["summary", "tensors"] | None = "summary",
        save: Literal["floats", "bytes"] = "floats",
        float_ckpt_path: str | None = None,
    ) -> None:
        check_settings(target, metric, target_fn, int8_every_n_epochs, export_dir, float_ckpt_path)
        check_monitor(monitor, mode)
        self.target = target
        self.qconfig = as_qconfig(qconfig)
        self.schedule = as_dataclass(QATSchedule, schedule, "schedule")
        self.monitor, self.mode = monitor, mode
        self.metric, self.target_fn = metric, target_fn
        self.int8_every_n_epochs, self.export_dir = int8_every_n_epochs, export_dir
        self.export_settings = as_export_settings(exporters, gate, dynamic_axes)
        self.auto_exclude = as_auto_exclude(auto_exclude, self.schedule, metric)
        self.auto_bits = wanted_bits(auto_bits, self.schedule)
        exported = [chosen.name for chosen in self.export_settings.choices]
        check_searches(self.auto_exclude, self.auto_bits, exported)
        self.distill = None if distill is None else as_dataclass(Distillation, distill, "distill")
        self.exclusions: Exclusions | None = None
        self.bits: BitChoice | None = None
        self.plan: Plan | None = None
        self._name, self._applied = "", self.qconfig
        self._float = FloatReference()
        self._pause = CompilationPause()
        check_saving(save)
        self.save, self.float_ckpt_path = save, float_ckpt_path
        check_detail(log_ranges)
        self._ranges = RangeMonitor(log_ranges)
        self.deployment: Deployment | None = None
        self._reset()

    def _reset(self) -> None:
        """Forget the last run, but for what it made, in case that there is nothing to train."""
        self._earlier, self.deployment = self.deployment, None
        self._course, self._history = Course(self.schedule), History()
        self._destination: Destination | None = None
        self._example: Inputs | None = None
        self._float.reset()
        self._ranges.reset()
        self._first = FirstSteps()
        self._round: ValidationRound | None = None
        self._sizes = SizeWatch(self.export_settings.axes, rank_zero_warn)
        self._start: StartingPoint | None = None
        self._teacher: Teacher | None = None
        self._resumes_float = False
        self._of_others: Kept = frozenset()
        self._loaders: Any = None
        self._pause.end()

    def _target(self, pl_module: LightningModule) -> nn.Module:
        return target_of(pl_module, self._name)

    def _share_with_averages(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for average in averages_of(trainer):
            share_quantization_state(self._target(pl_module), target_of(average, self._name))

    # ---- before training ------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare the module, for every stage, so that checkpoints of a QAT run fit."""
        self._check_callbacks(trainer)
        if stage == "fit":
            self._reset()
            if is_dev_run(trainer):
                self._course.shorten()
            self._destination = choose_destination(trainer, self.export_dir)
        self._name = choose_target(pl_module, self.target, trainer)
        validation = self._validation_data(trainer, None)
        checkpoint = cache(partial(checkpoint_to_load, trainer, "QATCallback"))
        if self.float_ckpt_path is not None:
            start_from(self.float_ckpt_path, pl_module, self._name, checkpoint)
        applied, found = choose_qconfig(
            trainer, pl_module, self._name, self.qconfig, self._search(), validation, checkpoint
        )
        if applied is None:
            return  # a float module until a fit has searched
        self._applied = applied
        self.exclusions = found if isinstance(found, Exclusions) else self.exclusions
        self.bits = found if isinstance(found, BitChoice) else self.bits
        float_model = prepare_target(trainer, pl_module, self._name, applied, validation, checkpoint)
        if float_model is not None:
            self._float = FloatReference(float_model)
        self._float.forget_unless_matching(self._target(pl_module))
        target = self._target(pl_module)
        self.plan = plan_of(target) if is_planned(target) else None
        set_saving(target, self.save)
        if stage == "fit":
            self._of_others = frozenset() if has_ranges(target) else kept_so_far(trainer)
            state_of(target).waits = True  # for on_train_batch_end, which all processes reach
            self._announce_plan()
            check = partial(self._check, pl_module)
            self._first.watch(pl_module, self._name, check, is_chosen=self.target is not None)

    def _search(self) -> Search[Exclusions | BitChoice] | None:
        if self.auto_bits is not None:
            return BitSearch(self.auto_bits, [chosen.choice for chosen in self.export_settings.choices])
        return None if self.auto_exclude is None else ExclusionSearch(self.auto_exclude)

    def _check_callbacks(self, trainer: Trainer) -> None:
        count = sum(isinstance(c, QATCallback) for c in trainer.callbacks)  # type: ignore[attr-defined]
        if count > 1:
            raise ValueError(
                f"The Trainer has {count} QATCallbacks, but a model can be quantized only once. Keep one of them; its "
                "qconfig.overrides can give layers different settings."
            )
        check_averaging(self, trainer)
        check_strategy(trainer.strategy)

    def _check(self, pl_module: LightningModule, example: Inputs) -> None:
        example = self._example = call_to_export(self._float.model or self._target(pl_module), example)
        # The check gives the float model the weights of now.
        if self._float.model is not None and self._float.is_usable and not self._float.is_of_checkpoint:
            with scratch_beside(None if self._destination is None else self._destination.path):
                check_first_call(pl_module, self._name, self._float.model, example, self.export_settings)
        target = self._target(pl_module)
        if self.int8_every_n_epochs is not None:
            check_eight_bits(target, f"int8_every_n_epochs={self.int8_every_n_epochs}: PyTorch")
        if self.plan is None and is_planned(target):
            self.plan = plan_of(target)
            self._announce_plan()

    def _announce_plan(self) -> None:
        summary = "planned at its first call" if self.plan is None else self.plan.summary()
        rank_zero_info(f"lq: {self._name or 'the module itself'}: {summary}")
        if self.plan is not None and self.plan.about_ends is not None:
            rank_zero_info(f"lq: {self.plan.about_ends}")
        if self.plan is not None and self.plan.warning is not None:
            rank_zero_warn(f"lq: {self.plan.warning}.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the initial learning rates before a checkpoint restores annealed ones."""
        check_still_prepared(pl_module, self._name)
        target = self._target(pl_module)
        state_of(target).train(target.training)  # of a target that a validation before the fit has called first
        self._course.note_rates(trainer)
        self._warn(take_in_exchanged(target))

    def _warn(self, note: str | None) -> None:
        if note is not None:
            rank_zero_warn(note)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the schedule against the length of this training, which is known by now."""
        target = self._target(pl_module)
        state_of(target).train(target.training)  # of a target that the sanity check has called first
        if self.distill is not None:
            check_teaching(self.distill, pl_module, self._float.teacher())
        self._course.begin(trainer, target, is_of_float=self._resumes_float)

    # ---- during training ------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the learning rate of the first step before monitors read it."""
        self._course.set_rates(trainer, 0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the phase and the learning rate that belong to this position."""
        course, target = self._course, self._target(pl_module)
        if course.phase is None and course.has_started and batch_idx == 0:
            self._history.note_missed_epoch(trainer, self._ranges.take(pl_module, self._name))
        if not course.has_started and course.phase_at(trainer, batch_idx).fake_quant:
            self._begin_qat(trainer, pl_module, batch_idx)
        self._first.begin_step(trainer, pl_module, target, self._name)
        phase = course.enter(trainer, target, batch_idx)
        self._listen_eagerly(pl_module, self._example is None)
        if self.distill is not None and phase.fake_quant:
            if self._teacher is None:
                teacher = self._float.teacher()
                self._teacher = Teacher(self.distill, trainer, pl_module, target, teacher, self.target_fn)
            self._teacher.begin(batch)

    def _begin_qat(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> None:
        course = self._course
        self._float.take_weights(pl_module, self._name)
        course.start(trainer, pl_module, self._name)
        if course.schedule.calibration:
            validation = self._validation_data(trainer, validation_loaders(trainer))
            self._start = judge_start(trainer, pl_module, self._name, validation)
        if not any(state_of(self._target(pl_module)).observed()):
            course.schedule.check_start(course.phase_at(trainer, batch_idx))

    def _listen_eagerly(self, pl_module: LightningModule, listening: bool) -> None:
        if listening and is_compiled(pl_module):
            self._pause.begin()
        else:
            self._pause.end()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Set the learning rate again, which a scheduler may have moved since the batch started; train the scales."""
        self._course.begin_optimizer_step(trainer, optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the ranges by this step.

        And undo what a scheduler of the module did, so that monitors and checkpoints see the rate that is used next.
        """
        course, target = self._course, self._target(pl_module)
        course.end_step(target)
        # Nothing else shares buffers there, as DDP does, and a checkpoint holds those of one process.
        if splits_weights(trainer.strategy) and not state_of(target).freeze_bn:
            share_statistics(target)
        if self._teacher is not None:
            pl_module.log_dict(self._teacher.end(), on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        self._first.end_step()
        if course.phase is not None and course.phase.fake_quant:
            is_first = self._first.check_calls(pl_module, target, self._name, outputs)
            if is_first and self._example is None:
                check_example(trainer, pl_module, self._name)
        course.set_rates(trainer, batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the phase, and report batches that the observers had to skip."""
        self._first.end_epoch()
        if self._course.phase is None:
            return
        figures = self._course.figures
        # The same in all processes; reducing them says so to Lightning.
        pl_module.log_dict(figures, sync_dist=True)
        scales = self._ranges.log_epoch(pl_module, self._name) if self._course.has_started else {}
        self._history.note(trainer, {**figures, **scales})
        self._warn(take_nonfinite(self._target(pl_module)))
        self._warn(take_unplanned(self._target(pl_module)))

    # ---- validation -----------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to the target: FP32 is judged on the first validation after the start, the rest on every one."""
        if not is_target_prepared(pl_module, self._name):
            return
        self._loaders = validation_loaders_of(trainer)
        self._listen_eagerly(pl_module, True)
        self._share_with_averages(trainer, pl_module)
        if trainer.state.fn == "fit":
            self._sizes.start(self._target(pl_module), self._example)
        validation, versions = self._validation_data(trainer, self._loaders), self._versions_due(trainer)
        axes = self.export_settings.axes
        self._round = ValidationRound(
            trainer, pl_module, self._name, self._float, validation, versions, self._example, axes
        )

    def _versions_due(self, trainer: Trainer) -> list[str]:
        if trainer.state.fn != "fit" or trainer.sanity_checking or not self._course.has_started:
            return []
        every = self.int8_every_n_epochs
        return ["fp32", "int8"] if every is not None and (trainer.current_epoch + 1) % every == 0 else ["fp32"]

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Make the versions that are compared, and look at the ranges, in the first batch."""
        if self._round is not None:
            self._round.begin()
        if trainer.state.fn == "fit" and self._course.has_started and (batch_idx, dataloader_idx) == (0, 0):
            self._ranges.listen(pl_module, self._name)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Feed the comparison; ``args`` are outputs, batch, batch_idx and dataloader_idx."""
        self._ranges.stop()
        if self._round is not None:
            self._round.update(args[1])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log ``qat/<version>/<metric>``."""
        if self._round is None:
            return
        results, self._round = self._round.finish(self._validation_data(trainer, self._loaders)), None
        if trainer.sanity_checking:
            return
        figures = figures_of(results) if state_of(self._target(pl_module)).fake_quant else {}
        pl_module.log_dict(figures, sync_dist=True, add_dataloader_idx=False)  # which the names of the module have
        self._ranges.log_validation(trainer, pl_module)
        if trainer.state.fn != "fit":
            return
        if figures:
            self._history.note(trainer, figures)
        serve_monitors(trainer, figures, self._later_figures())

    def _later_figures(self) -> list[str]:
        """Those of QAT that validation does not log, or not always."""
        int8 = () if self.int8_every_n_epochs is None else ("qat/int8/", "qat/int8_vs_fake/")
        taught = () if self.distill is None else self.distill.figures
        return [*int8, *taught, *self._ranges.later, *self._course.figures]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the figure that counts is logged, and let compiled code run again."""
        self._sizes.stop()
        require_figure(trainer, pl_module, self.monitor)
        self._listen_eagerly(pl_module, trainer.state.fn == "fit" and self._example is None)

    # ---- the end --------------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before averaging callbacks put their weights into the module."""
        self._share_with_averages(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._stop_listening()

    def _stop_listening(self) -> None:
        self._sizes.stop()
        self._first.remove()
        if self._teacher is not None:
            self._teacher.remove()
        if self._round is not None:
            self._round.stop()
        self._ranges.stop()
        self._round = self._teacher = None
        self._pause.end()
        self._course.stop()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Convert the best weights, compare, export and print the table, on rank 0."""
        self._stop_listening()
        if not self._course.has_started:
            has_trained = self._course.phase is not None
            if not has_trained:
                self.deployment = self._earlier
            self._warn(describe_no_result(has_trained, self.deployment))
            return
        if self._loaders is None:  # no validation ran
            self._loaders = validation_loaders(trainer)
        close_progress_bar(trainer, pl_module)
        results = copy_on_first_process(trainer, pl_module, lambda twin: self._deploy(trainer, twin))
        log_at_the_end(trainer, results, self.export_settings.choices[0].name)
        if self.deployment is not None:
            self.deployment.raise_failures()

    def _deploy(self, trainer: Trainer, twin: LightningModule) -> Results:
        validation = self._validation_data(trainer, self._loaders)
        self.deployment = deploy_best(
            trainer,
            twin,
            self._name,
            self._example or example_without_training(twin, self._name, validation),
            validation=validation,
            baseline=self._float.baseline(),
            settings=replace(self.export_settings, directory=self._destination),
            schedule=self.schedule,
            start=self._start,
            history=self._history.rows,
            of_others=self._of_others,
        )
        return self.deployment.results

    def _validation_data(self, trainer: Trainer, loaders: Any) -> ValidationData:
        return ValidationData(
            loaders,
            trainer.datamodule,  # type: ignore[attr-defined]
            self.metric,
            self.target_fn,
            trainer.limit_val_batches,
            show_progress=trainer.progress_bar_callback is not None,
            monitor=counting_figure(trainer, self.monitor),
            higher_is_better=higher_is_better(trainer, self.monitor, self.mode),
        )

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    # Not state_dict(): Lightning refuses two stateful callbacks of a class before this one can say what to do.
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what :func:`lq.load_checkpoint` needs: plain data, which loads with ``weights_only=True``."""
        if not is_target_prepared(pl_module, self._name):
            return
        self._share_with_averages(trainer, pl_module)
        if not is_planned(self._target(pl_module)):
            return
        plan, ptq = plan_of(self._target(pl_module)).to_dict(), {} if self._start is None else self._start.results
        course = self._course
        checkpoint[KEY] = CheckpointEntry(
            self._name,
            self._applied,
            course.has_started,
            self._float.results,
            plan,
            self._history.rows,
            ptq,
            course.is_calibrated,
            course.began,
            course.given_start,
        ).to_dict()
        if self.distill is not None and course.has_started and self._float.is_usable:
            checkpoint[TEACHER] = self._float.teacher().state_dict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up a run; the float weights from before QAT are not in its checkpoint, their figures are."""
        if KEY not in checkpoint:
            rank_zero_info("lq: this is a checkpoint of the float model")
            self._resumes_float = True
            if trainer.state.fn == "fit":
                require_epochs_left(checkpoint, trainer.max_epochs)
            return
        check_finetuning(self, trainer)
        entry = CheckpointEntry.from_dict(checkpoint[KEY])
        entry.require_same_plan(self._name, self._applied)
        self._course.resume(entry, trains=trainer.state.fn == "fit")
        self._float.results = dict(entry.fp32)
        self._of_others = frozenset()  # the ModelCheckpoints are those of this run
        if not splits_weights(trainer.strategy):
            require_qat_state(checkpoint, pl_module)
        # Of a whole checkpoint Lightning then loads parameters and buffers alone.
        elif entry.started:
            set_phase(self._target(pl_module), fake_quant=True, observer=False, freeze_bn=True)
        self._history = History(entry.history)
        self._ranges.resume(self._history.rows)
        self._float.has_weights = not entry.started
        self._start = StartingPoint(entry.ptq) if entry.ptq else None
        if TEACHER in checkpoint:
            self._float.take_teacher(checkpoint[TEACHER])
