"""``auto_exclude``: the layers that stay in float, found before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from lightning.pytorch import LightningModule

from lq.analysis.auto_exclude import AutoExclude, find_exclusions
from lq.analysis.exclusions import Exclusions
from lq.analysis.own_score import needs_figure, own_score
from lq.analysis.score import require_direction, single_metric
from lq.analysis.sensitivity import SensitivityOptions
from lq.backends.prepare import prepare
from lq.callback.search import require_early_start
from lq.checks import as_dataclass
from lq.config.qconfig import QConfig
from lq.config.schedule import QATSchedule
from lq.deployment.evaluation import ValidationData
from lq.lightning_module.target import target_of
from lq.lightning_module.validation import call_sample, labels_of, validation_samples
from lq.metrics import targets_of
from lq.metrics.comparison import AnyMetric
from lq.metrics.outputs import plain_targets_of
from lq.ptq.calibrate import calibrate
from lq.ptq.static import with_histograms

_WHO = "auto_exclude"


def as_auto_exclude(
    given: bool | AutoExclude | Mapping[str, Any], schedule: QATSchedule, metric: AnyMetric | None = None
) -> AutoExclude | None:
    """What was asked for; ``True`` is :class:`AutoExclude` with its defaults.

    Raises:
        ValueError: if QAT starts later than the training, so that there is nothing to look at before it, or the metric
            does not say which way it is better.

    Example:
        >>> as_auto_exclude({"max_layers": 1}, QATSchedule()).max_layers
        1
        >>> as_auto_exclude(True, QATSchedule(start=2))
        Traceback (most recent call last):
        ...
        ValueError: auto_exclude needs the trained float weights before the first step, but with schedule.start=2 ...
    """
    if given is False or given is None:
        return None
    limits = as_dataclass(AutoExclude, None if given is True else given, _WHO)
    require_direction(single_metric(metric))
    require_early_start(_WHO, schedule, "let `lq analyze` name the layers, and write them into qconfig.exclude")
    return limits


@dataclass(frozen=True)
class ExclusionSearch:
    """Looks for layers that quantization hurts; see :class:`lq.callback.search.Search`.

    Example:
        >>> search, fewer = ExclusionSearch(AutoExclude()), QConfig(exclude=["stem"])
        >>> search.extends(QConfig(exclude=["stem", "head"]), fewer), search.extends(QConfig(), fewer)
        (True, False)
        >>> search.on_one_batch().limits.batches
        1
    """

    limits: AutoExclude
    setting: ClassVar[str] = _WHO
    without_data: ClassVar[str] = "exclude layers by name: QConfig(exclude=[...])"

    def on_one_batch(self) -> ExclusionSearch:
        """For a dev run."""
        return replace(self, limits=replace(self.limits, batches=1))

    def extends(self, known: QConfig, qconfig: QConfig) -> bool:
        """Whether the one is the other with more layers excluded."""
        return replace(known, exclude=known.exclude[: len(qconfig.exclude)]) == qconfig

    def find(self, twin: LightningModule, name: str, qconfig: QConfig, validation: ValidationData) -> Exclusions:
        """What to exclude."""
        return _find(twin, name, qconfig, self.limits, validation)


def _find(
    twin: LightningModule, name: str, qconfig: QConfig, limits: AutoExclude, validation: ValidationData
) -> Exclusions:
    target_fn = validation.target_fn or (plain_targets_of if validation.metric is None else targets_of)
    samples = validation_samples(twin, name, validation.loaders, validation.datamodule, target_fn, limits.batches)
    if not samples:
        raise ValueError("auto_exclude got no validation batch: the data loader is empty. Give it at least one.")
    score = own_score(twin, name, samples, limits.batches, validation, "auto_exclude")
    if score is None and any(sample.labels is None for sample in samples):
        raise ValueError(needs_figure("auto_exclude"))
    args, kwargs = samples[0].inputs
    prepared = prepare(target_of(twin, name), with_histograms(qconfig), args, kwargs)
    calibrate(prepared, samples, call_sample, len(samples), show_progress=validation.show_progress)
    options = SensitivityOptions(call=call_sample, target_fn=labels_of, show_progress=validation.show_progress)
    return find_exclusions(prepared, samples, validation.metric, replace(limits, batches=len(samples)), options, score)
