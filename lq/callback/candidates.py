"""Below 8 bits training does not always pay: what it started from is judged too, and the best is delivered."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from lq.analysis.score import single_metric
from lq.backends.prepare import set_phase, state_of
from lq.callback.announcements import has_room_for_bar
from lq.callback.processes import copy_on_first_process
from lq.core.lsq import LearnedScale
from lq.deployment.evaluation import ValidationData, compare_on_validation_data
from lq.lightning_module.target import target_of
from lq.lightning_module.validation import Sample, call_sample
from lq.messages import one_line
from lq.metrics import metric_name
from lq.ptq.batch_norm import reestimate_batch_norm
from lq.timing.rows import FAKE

UNTRAINED = "the float model, quantized without training"
ADVICE = "Train longer or at another rate (QATSchedule(lr=...))"


@dataclass(frozen=True)
class StartingPoint:
    """What a low-bit QAT starts from: a post-training quantization, the float weights with calibrated ranges.

    Args:
        results: its figures on the validation data.
        ranges: lowest and highest value of every slot, on the CPU; ``None`` in a run that was resumed.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> from lq.lightning_module.quiet import quiet_trainer
        >>> module = LightningModule()
        >>> module.model = prepare(torch.nn.Sequential(torch.nn.Linear(4, 2)))
        >>> judge_start(quiet_trainer(module), module, "model", ValidationData(loaders=None))
        StartingPoint(results={}, ranges=(tensor([inf, inf]), tensor([-inf, -inf])))
    """

    results: Mapping[str, float] = field(default_factory=dict)
    ranges: tuple[Tensor, Tensor] | None = None


def judge_start(trainer: Trainer, module: LightningModule, name: str, validation: ValidationData) -> StartingPoint:
    """Validate the calibrated target before the first step of QAT: one pass over the validation data.

    Args:
        trainer: of the fit; all processes have to call this.
        module: the LightningModule, its target calibrated.
        name: of the target.
        validation: the validation data.

    Returns:
        the starting point; without figures if there are no validation data, or they need the run itself.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from lq.backends.prepare import prepare
        >>> from lq.lightning_module.quiet import quiet_trainer
        >>> from lq.models.image_classifier import ImageClassifier
        >>> from lq.ptq.calibrate import calibrate
        >>> net, x = torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.tensor([0.0, 9.0])
        >>> module = ImageClassifier(prepare(net), num_classes=2)
        >>> _ = net[0].weight.data.copy_(torch.eye(2)), calibrate(net, [x[None]])
        >>> validation = ValidationData(DataLoader([(x, 1), (x, 0)]))
        >>> judge_start(quiet_trainer(module), module, "model", validation).results["val/accuracy"]
        0.5
    """
    state = state_of(target_of(module, name))
    ranges = state.min_val.detach().cpu().clone(), state.max_val.detach().cpu().clone()
    if validation.loaders is None:
        return StartingPoint(ranges=ranges)
    validation = replace(validation, show_progress=has_room_for_bar(trainer))
    try:
        results = copy_on_first_process(trainer, module, lambda twin: _results(twin.float(), name, validation))
        return StartingPoint(results, ranges)
    except Exception as error:  # whatever the user's validation cannot do outside of its own run
        reason = one_line(error)
        rank_zero_warn(f"lq: the model before QAT could not be evaluated ({type(error).__name__}: {reason}).")
        return StartingPoint(ranges=ranges)


def choose_weights(
    twin: LightningModule,
    name: str,
    validation: ValidationData,
    start: StartingPoint,
    float_weights: Mapping[str, Any],
    samples: Iterable[Sample],
    trained: str,
) -> str:
    """Leave in a trained module what is best on the validation data, which takes a pass for each candidate.

    Candidates are what was trained; the same with BatchNorm statistics measured behind the rounded weights; and what
    QAT started from.

    Args:
        twin: a copy of the trained module that nothing else uses.
        name: of its target.
        validation: the validation data, and the figure that counts.
        start: what QAT started from.
        float_weights: of the module from before QAT, by their names; empty if they are not known any more.
        samples: what reaches the target, of the training data, for BatchNorms.
        trained: where the weights of ``twin`` are from.

    Returns:
        where those are from that it has now.

    Example:
        >>> import warnings
        >>> from torch.utils.data import DataLoader
        >>> from lq.backends.prepare import prepare
        >>> from lq.lightning_module.quiet import quiet_trainer
        >>> from lq.lightning_module.stand_in import float_weights
        >>> from lq.models.image_classifier import ImageClassifier
        >>> from lq.ptq.calibrate import calibrate
        >>> net, x = torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.tensor([0.0, 9.0])
        >>> module = ImageClassifier(prepare(net), num_classes=2)
        >>> _ = net[0].weight.data.copy_(torch.eye(2)), calibrate(net, [x[None]])
        >>> validation = ValidationData(DataLoader([(x, 1)]), show_progress=False)
        >>> start = judge_start(quiet_trainer(module), module, "model", validation)
        >>> before, _ = float_weights(module, "model"), net[0].weight.data.neg_()  # a training that spoils it
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     choose_weights(module, "model", validation, start, before, [], "the last step")
        'the float model, quantized without training'
        >>> net[0].weight.data.equal(torch.eye(2))
        True
    """
    results = _results(twin, name, validation)
    counts = _counting(results, validation)
    if counts is None:
        rank_zero_info(
            "lq: no metric to compare the models before and after QAT; name one: QATCallback(monitor=..., mode=...)"
        )
        return trained
    figure, sign = counts
    best, before_norms = results[figure], copy.deepcopy(twin.state_dict())
    if reestimate_batch_norm(target_of(twin, name), samples, call_sample):
        again = _results(twin, name, validation)[figure]
        rank_zero_info(f"lq: {figure} {best:.4f}; with BatchNorm statistics measured again: {again:.4f}")
        if _is_better(again, best, sign):
            best, trained = again, f"{trained}, with BatchNorm statistics measured again"
        else:
            twin.load_state_dict(before_norms)
    before = start.results.get(figure, best)
    if not _is_better(before, best, sign):
        return trained
    worse = f"lq: QAT ended with {figure} {best:.4f}, but quantization without training had {before:.4f}"
    if not float_weights or start.ranges is None:
        rank_zero_warn(f"{worse}. {ADVICE}, or quantize the float model: lq.quantize_static.")
        return trained
    rank_zero_warn(f"{worse}, so the untrained model is exported. {ADVICE}.")
    _restore(twin, name, start.ranges, float_weights)
    return UNTRAINED


def _is_better(figure: float, than: float, sign: int) -> bool:
    """Whether a figure beats another one; no number is worse than all."""
    return not math.isnan(figure) and (math.isnan(than) or sign * figure > sign * than)


def _restore(twin: LightningModule, name: str, ranges: tuple[Tensor, Tensor], float_weights: Mapping[str, Any]) -> None:
    target = target_of(twin, name)
    weights = twin.state_dict()  # which knows the versions of the user's modules
    weights.update({key: value for key, value in float_weights.items() if key in weights})
    twin.load_state_dict(weights)
    with torch.no_grad():
        for own, found in zip((state_of(target).min_val, state_of(target).max_val), ranges, strict=True):
            own.copy_(found)
    for part in target.modules():
        if isinstance(part, LearnedScale):
            part.reset()


def _results(twin: LightningModule, name: str, validation: ValidationData) -> dict[str, float]:
    set_phase(target_of(twin, name), fake_quant=True, observer=False, freeze_bn=True)
    return dict(compare_on_validation_data(twin, name, {}, validation).results.get(FAKE, {}))


def _counting(results: Mapping[str, float], validation: ValidationData) -> tuple[str, int] | None:
    """Name and sign of the figure that counts: the one of the user's, or else that of the metric."""
    metric = single_metric(validation.metric)
    if validation.monitor is not None and validation.monitor in results:
        name, higher = validation.monitor, validation.higher_is_better
    elif isinstance(metric, str):
        name, higher = metric, True
    else:
        name, higher = metric_name(metric), cast("bool | None", metric.higher_is_better)
    return None if name not in results or higher is None else (name, 1 if higher else -1)
