"""Which qconfig a run prepares with: the user's, and with ``auto_exclude`` the layers that stay in float besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from lq.analysis.auto_exclude import AutoExclude, find_exclusions
from lq.analysis.exclusions import Exclusions
from lq.analysis.score import OwnScore, Score, require_direction, single_metric
from lq.analysis.sensitivity import SensitivityOptions
from lq.analysis.tensors import has_ranges
from lq.backends.prepare import prepare, qconfig_of
from lq.callback.checkpoint_to_load import Known
from lq.callback.example import early_validation_loaders
from lq.callback.processes import on_first_process
from lq.callback.progress import is_dev_run
from lq.checkpoints.entry import KEY, CheckpointEntry
from lq.checks import as_dataclass
from lq.config.points import Point
from lq.config.qconfig import QConfig
from lq.config.schedule import QATSchedule
from lq.deployment.evaluation import ValidationData, logged_by
from lq.lightning_module.copies import detached_copy
from lq.lightning_module.loaders import spread
from lq.lightning_module.target import is_target_prepared, target_of
from lq.lightning_module.validation import Sample, call_sample, labels_of, validation_samples
from lq.metrics import targets_of
from lq.metrics.comparison import AnyMetric
from lq.metrics.outputs import plain_targets_of
from lq.ptq.calibrate import calibrate
from lq.ptq.static import with_histograms

_WHO = "auto_exclude"
_SEARCHED = "_lq_searched"  # a learning rate finder leaves no other trace where nothing was to be excluded


def as_auto_exclude(
    given: bool | AutoExclude | Mapping[str, Any], schedule: QATSchedule, metric: AnyMetric | None = None
) -> AutoExclude | None:
    """What was asked for; ``True`` is :class:`AutoExclude` with its defaults.

    Raises:
        ValueError: if QAT starts later than the training, so that there is nothing to look at before it, or the metric
            does not say which way it is better.
    """
    if given is False or given is None:
        return None
    limits = as_dataclass(AutoExclude, None if given is True else given, "auto_exclude")
    require_direction(single_metric(metric))
    if Point.parse("start", schedule.start).value > 0:
        raise ValueError(
            f"auto_exclude looks at the weights that QAT starts from, before the first step, but with "
            f"schedule.start={schedule.start!r} they are trained in the same fit. Train in float first and start QAT "
            "from that checkpoint; or let `lq analyze` name the layers, and write them into qconfig.exclude."
        )
    return limits


def choose_qconfig(
    trainer: Trainer,
    module: LightningModule,
    name: str,
    qconfig: QConfig,
    limits: AutoExclude | None,
    validation: ValidationData,
    checkpoint_of_run: Known,
) -> tuple[QConfig | None, Exclusions | None]:
    """The qconfig to prepare with: the user's, with layers excluded if that was asked for.

    An earlier fit is believed; only a new one looks for layers. Before there is one, nothing is prepared.

    Args:
        trainer: in ``setup``.
        module: the LightningModule.
        name: of its target.
        qconfig: the user's.
        limits: from :func:`as_auto_exclude`.
        validation: metric and labels; the loaders are the trainer's.
        checkpoint_of_run: gives the checkpoint that is going to be loaded.

    Returns:
        the qconfig, ``None`` as long as nobody knows it, and what was found in this very run.

    Raises:
        ValueError: if an earlier fit had another qconfig, there are no validation data, or the metric does not fit.
    """
    if limits is None:
        return qconfig, None
    if is_target_prepared(module, name) and _was_fitted(module, name, qconfig):
        known: QConfig = qconfig_of(target_of(module, name))
        return known if _extends(known, qconfig) else qconfig, None  # which is going to be refused
    checkpoint = checkpoint_of_run()
    if KEY in checkpoint:
        entry = CheckpointEntry.from_dict(checkpoint[KEY])
        if not _extends(entry.qconfig, qconfig):
            entry.require_same_plan(name, qconfig)
        return entry.qconfig, None
    if trainer.state.fn != "fit":
        return qconfig if is_target_prepared(module, name) else None, None
    _require_float(module, name)
    if is_dev_run(trainer):
        limits = replace(limits, batches=1)
    validation = replace(validation, loaders=_loaders(trainer, module))
    found = on_first_process(trainer, lambda: _find(_float_twin(module, checkpoint), name, qconfig, limits, validation))
    rank_zero_info(f"lq: auto_exclude: {found}")
    module.__dict__[_SEARCHED] = True
    return found.apply(qconfig), found


def _was_fitted(module: LightningModule, name: str, qconfig: QConfig) -> bool:
    target = target_of(module, name)
    return qconfig_of(target) != qconfig or _SEARCHED in module.__dict__ or has_ranges(target)


def _require_float(module: LightningModule, name: str) -> None:
    if is_target_prepared(module, name):
        raise ValueError(
            f"auto_exclude looks for layers in a float module, but this {type(module).__name__} was prepared for QAT "
            "before and never trained since. Fit a new module, or leave the preparation to this QATCallback."
        )


def _extends(known: QConfig, qconfig: QConfig) -> bool:
    return replace(known, exclude=known.exclude[: len(qconfig.exclude)]) == qconfig


def _loaders(trainer: Trainer, module: LightningModule) -> Any:
    loaders = early_validation_loaders(trainer, module, _WHO)
    if loaders is None:
        raise ValueError(
            "auto_exclude compares layers on the validation data, and this fit has none. Give it some, or exclude "
            "layers by name: QConfig(exclude=[...])."
        )
    return loaders


def _float_twin(module: LightningModule, checkpoint: Mapping[str, Any]) -> LightningModule:
    twin = detached_copy(module)
    if "state_dict" in checkpoint:
        twin.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading)
    return twin.float().eval()


def _find(
    twin: LightningModule, name: str, qconfig: QConfig, limits: AutoExclude, validation: ValidationData
) -> Exclusions:
    target_fn = validation.target_fn or (plain_targets_of if validation.metric is None else targets_of)
    samples = validation_samples(twin, name, validation.loaders, validation.datamodule, target_fn, limits.batches)
    if not samples:
        raise ValueError("auto_exclude got no validation batch: the data loader is empty. Give it at least one.")
    score = _own_score(twin, name, samples, limits, validation)
    if score is None and any(sample.labels is None for sample in samples):
        raise ValueError(
            "auto_exclude needs a figure to compare: the batches are not plain inputs and labels. Name a figure that "
            "validation_step logs, QATCallback(monitor='val_...', mode='max'), or give a metric and a target_fn."
        )
    args, kwargs = samples[0].inputs
    prepared = prepare(target_of(twin, name), with_histograms(qconfig), args, kwargs)
    calibrate(prepared, samples, call_sample, len(samples), show_progress=validation.show_progress)
    options = SensitivityOptions(call=call_sample, target_fn=labels_of, show_progress=validation.show_progress)
    return find_exclusions(prepared, samples, validation.metric, replace(limits, batches=len(samples)), options, score)


def _own_score(
    twin: LightningModule, name: str, samples: Sequence[Sample], limits: AutoExclude, validation: ValidationData
) -> Score | None:
    """The figure that counts, of those that the module logs; ``None`` if a metric judges."""
    monitor = validation.monitor
    if monitor is None or validation.metric is not None:
        return None
    own = detached_copy(twin)
    some = replace(
        validation, loaders=spread(validation.loaders, limits.batches), limit=limits.batches, show_progress=False
    )
    logged = logged_by(own, name, some, "fp32")
    if monitor not in logged:
        return None  # a ModelCheckpoint may look at figures of the training
    if validation.higher_is_better is None:
        raise ValueError(
            f"auto_exclude does not know which way {monitor} is better: give QATCallback(mode='max'), or 'min'."
        )

    def figure(model: nn.Module) -> float:
        return logged_by(own, name, some, "a trial", model)[monitor]

    return OwnScore(samples, higher_is_better=validation.higher_is_better, figure=figure, label=monitor)
