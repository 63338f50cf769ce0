"""Several versions of one model, judged on the same batches by the same metric."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lq.checks import shown
from lq.messages import one_line
from lq.metrics.accumulated import SQNR, DetectionAgreement, MaxAbsError, Top1Agreement
from lq.metrics.detections import comparable, detections_in, main_of
from lq.metrics.outputs import describe, main_tensor

AnyMetric = Metric | MetricCollection

_TASK = re.compile("^(Binary|Multiclass|Multilabel)")
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def classification_metric(num_classes: int) -> MulticlassAccuracy:
    """The default metric of classifiers: the share of correct top-1 predictions.

    Args:
        num_classes: number of classes, at least 2.

    Returns:
        Micro-averaged multiclass accuracy.

    Raises:
        ValueError: if there are fewer than two classes.

    Example:
        >>> metric = classification_metric(3)
        >>> metric.update(torch.eye(3), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.6667
    """
    if num_classes < 2:
        raise ValueError(
            f"num_classes={num_classes}: accuracy needs two classes or more. For a single score per sample "
            "give a metric, e.g. torchmetrics.classification.BinaryAccuracy()."
        )
    return MulticlassAccuracy(num_classes=num_classes, average="micro")


def metric_name(metric: AnyMetric) -> str:
    """The short name under which a metric is logged: its class in snake case, without the task.

    Example:
        >>> metric_name(classification_metric(10))
        'accuracy'
    """
    return _WORD_START.sub("_", _TASK.sub("", type(metric).__name__)).lower()


def keep_local(metric: Metric) -> None:
    """Let a metric compute over what this process has seen, whatever other processes do.

    ``sync_on_compute`` only acts in its constructor.

    Example:
        >>> metric = classification_metric(3)
        >>> keep_local(metric)
        >>> metric.distributed_available_fn()
        False
    """
    metric.distributed_available_fn = _no_other_process


def _no_other_process() -> bool:  # not a lambda, which would not pickle
    return False


class ModelComparison:
    """Collects the metric of several models on the same batches, and how far pairs of them agree.

    Outputs may be tensors, or tensors in dicts, tuples and lists; the metric and the pairs look at
    :func:`~lq.metrics.outputs.main_tensor`, but a list of dicts (detection) reaches the metric as it is, and pairs are
    compared by :func:`~lq.metrics.detections.detection_agreement` alone: the boxes are not as many in each.

    Args:
        models: names of the models, e.g. ``("fp32", "fake", "int8")``.
        metric: prototype that is cloned for every model and stays untouched; None means
            :func:`classification_metric`, with the number of classes taken from the first output.
        pairs: pairs ``(reference, other)`` of models to compare by top-1 agreement, SQNR and largest absolute
            error; agreement is left out where the outputs have no classes.
        device: where the metrics live; outputs and targets are moved there.
        sync_on_compute: whether :meth:`compute` may reduce over all processes; False if only one evaluates.
        optional: leave the default metric out where a batch is not of the plain kind, class scores and class numbers;
            then only the pairs are compared.

    Raises:
        ValueError: if a pair names an unknown model, or a name is given twice.
        TypeError: if ``metric`` is not a torchmetrics metric.

    Example:
        >>> comparison = ModelComparison(["fake", "int8"], pairs=[("fake", "int8")])
        >>> scores = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> comparison.update({"fake": scores, "int8": scores * 0.9}, torch.tensor([0, 0]))
        >>> results = comparison.compute()
        >>> results["int8"]
        {'accuracy': 0.5}
        >>> {name: round(value, 3) for name, value in results["int8_vs_fake"].items()}
        {'agreement': 1.0, 'sqnr_db': 20.0, 'max_abs_error': 0.4}
    """

    def __init__(
        self,
        models: Sequence[str],
        metric: AnyMetric | None = None,
        pairs: Sequence[tuple[str, str]] = (),
        device: torch.device | str = "cpu",
        sync_on_compute: bool = True,
        optional: bool = False,
    ) -> None:
        self.models = tuple(models)
        self.pairs = tuple((reference, other) for reference, other in pairs)
        if len(set(self.models)) != len(self.models) or not self.models:
            raise ValueError(f"models={list(models)} must be different names, e.g. ['fp32', 'int8'].")
        unknown = sorted({name for pair in self.pairs for name in pair} - set(self.models))
        if unknown:
            raise ValueError(f"pairs name {unknown}, which are not among the models {list(self.models)}.")
        if metric is not None and not isinstance(metric, AnyMetric):
            raise TypeError(
                f"metric={shown(metric)} ({type(metric).__name__}) is not a torchmetrics metric; "
                "write e.g. metric=torchmetrics.classification.BinaryF1Score()."
            )
        self._prototype = metric
        self._device = torch.device(device)
        self._sync_on_compute = sync_on_compute
        self._optional = optional and metric is None
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.is_empty = True
        self._metrics: dict[str, AnyMetric] = {}
        self._fidelity: dict[tuple[str, str], dict[str, Metric]] = {}

    def update(self, outputs: Mapping[str, Any], target: Any) -> None:
        """Add a batch.

        Args:
            outputs: what each model returned for the batch, by name.
            target: the labels, as the metric takes them.

        Raises:
            ValueError: if a model's output is missing, or the metric does not fit the batch.
        """
        if set(outputs) != set(self.models):
            raise ValueError(f"outputs of {sorted(outputs)} given, but {sorted(self.models)} are compared.")
        outputs = {name: self._move(outputs[name]) for name in self.models}
        target = self._move(target)
        if self._prototype is None and target is not None and (self.is_empty or self._metrics):
            target = self._plain_labels(outputs[self.models[0]], target)
        if self.is_empty:
            self._build(outputs[self.models[0]], target)
            self.is_empty = False
        for name, metric in self._metrics.items():
            _update(metric, outputs[name], target)
        for (reference, other), group in self._fidelity.items():
            for fidelity in group.values():
                fidelity.update(*(main_of(comparable(outputs[name])) for name in (reference, other)))

    def drop(self, name: str) -> None:
        """Leave a model out from now on, with what was seen of it."""
        self.models = tuple(model for model in self.models if model != name)
        self.pairs = tuple(pair for pair in self.pairs if name not in pair)
        self._metrics.pop(name, None)
        self._fidelity = {pair: group for pair, group in self._fidelity.items() if name not in pair}

    def compute(self) -> dict[str, dict[str, float]]:
        """Results over all batches.

        Returns:
            ``{metric name: value}`` under the name of each model, and ``{"agreement": share, "sqnr_db": dB,
            "max_abs_error": value}`` under ``"<other>_vs_<reference>"`` for each pair.

        Raises:
            ValueError: if no batch was seen.
        """
        if self.is_empty:
            raise ValueError("no batch was compared; call update() first (is the data loader empty?).")
        results = {name: dict(_scalars(self._metrics[name])) if self._metrics else {} for name in self.models}
        for (reference, other), group in self._fidelity.items():
            results[f"{other}_vs_{reference}"] = {name: float(m.compute()) for name, m in group.items()}
        return results

    def _build(self, output: Any, target: Any) -> None:
        scores = main_tensor(output)
        has_classes = scores.ndim >= 2 and scores.shape[1] >= 2
        if self._prototype is not None or self._is_classification(output, target):
            prototype = self._prototype or classification_metric(scores.shape[1])
            self._metrics = {name: self._placed(prototype.clone()) for name in self.models}
        for metric in self._metrics.values():
            metric.reset()
        for pair in self.pairs:
            group: dict[str, Metric] = {"agreement": DetectionAgreement()}
            if detections_in(output) is None:
                group = {"agreement": Top1Agreement()} if has_classes else {}
                group |= {"sqnr_db": SQNR(), "max_abs_error": MaxAbsError()}
            self._fidelity[pair] = {name: self._placed(metric) for name, metric in group.items()}

    def _plain_labels(self, output: Any, target: Any) -> Any:
        """Class numbers, wherever the labels say them; what :meth:`_is_classification` finds to be none stays."""
        try:
            return _class_numbers(output, target)
        except ValueError:
            if self._optional and self.is_empty:
                return target
            raise

    def _is_classification(self, output: Any, target: Any) -> bool:
        """Whether accuracy can be computed; if it has to be, an error says why not."""
        try:
            _check_labels(output, target)
        except ValueError:
            if not self._optional:
                raise
            return False
        return True

    def _placed(self, metric: Any) -> Any:
        members = metric.values() if isinstance(metric, MetricCollection) else [metric]
        if not self._sync_on_compute:
            for member in members:
                keep_local(member)
        return metric.to(self._device)

    def _move(self, data: Any) -> Any:
        return apply_to_collection(data, Tensor, self._moved)

    def _moved(self, tensor: Tensor) -> Tensor:
        # metrics that sum half-precision scores would saturate
        dtype = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype
        return tensor.detach().to(self._device, dtype)


def _class_numbers(output: Any, target: Any) -> Any:
    """Labels that are given as shares of the classes (one-hot, CutMix), as the numbers of the likeliest."""
    scores = main_tensor(output)
    if not isinstance(target, Tensor) or scores.ndim < 2 or target.shape != scores.shape:
        return target
    shares = target.float()
    if bool((shares < 0).any()) or not torch.allclose(shares.sum(1), torch.ones(()).to(shares), atol=1e-3):
        reason = "labels of the shape of the scores must be shares of the classes, which sum up to 1; these do not"
        raise ValueError(_misfit("the default metric, multiclass accuracy,", output, target, reason))
    return target.argmax(1)


def _check_labels(output: Any, target: Any) -> None:
    """MulticlassAccuracy counts labels that it does not know as wrong, so a first look at them is ours."""
    scores, name = main_tensor(output), "the default metric, multiclass accuracy,"
    if scores.ndim < 2 or scores.shape[1] < 2:
        raise ValueError(_misfit(name, output, target))
    if not isinstance(target, Tensor) or target.is_floating_point() or target.is_complex():
        raise ValueError(_misfit(name, output, target, "labels must be a tensor of class numbers"))
    wanted = (*scores.shape[:1], *scores.shape[2:])
    if tuple(target.shape) != wanted:
        raise ValueError(_misfit(name, output, target, f"labels must have the shape {wanted}"))
    if target.numel() == 0:
        return
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= scores.shape[1]:
        reason = f"labels run from {low} to {high}, classes from 0 to {scores.shape[1] - 1}"
        raise ValueError(_misfit(name, output, target, reason))


def _update(metric: AnyMetric, output: Any, target: Any) -> None:
    detections = isinstance(output, list) and all(isinstance(item, Mapping) for item in output)
    try:
        metric.update(output if detections else main_tensor(output), target)
    except Exception as error:
        raise ValueError(_misfit(f"metric {type(metric).__name__}", output, target, str(error))) from error


def _misfit(metric: str, output: Any, target: Any, reason: str = "") -> str:
    because = f" ({one_line(reason, None)})" if reason else ""
    return (
        f"{metric} does not fit the batch: output {describe(output)}, target {describe(target)}{because}. "
        "Give a metric for this task, e.g. metric=torchmetrics.classification.BinaryAccuracy() or "
        "torchmetrics.MeanSquaredError(), or a target_fn that takes the right labels from the batch."
    )


def _scalars(metric: AnyMetric) -> Iterator[tuple[str, float]]:
    value = metric.compute()
    entries = value.items() if isinstance(value, Mapping) else [(metric_name(metric), value)]
    for name, entry in entries:
        values = torch.as_tensor(entry).flatten().tolist()
        for index, item in enumerate(values):
            yield (name if len(values) == 1 else f"{name}_{index}"), float(item)
