"""The parity gate: does what is deployed compute what was trained?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lq.export.artifact import load
from lq.export.worker import WorkerError, run_in_fresh_process
from lq.metrics.fidelity import max_abs_error, sqnr, top1_agreement
from lq.metrics.outputs import main_tensor
from lq.plainly import check_flag, check_integer, check_number
from lq.tracing.structure import Inputs

ENOUGH_DB = 25.0
_TWICE_DB = 20 * math.log10(2)
ON_FAILURE = ("error", "warn")


@dataclass(frozen=True)
class Gate:
    """What an artifact has to reach, against the fake-quantized model on real batches.

    Args:
        batches: how many validation batches are compared.
        min_agreement: share of samples with the same largest output, of classifiers; ``None`` does not look. A single
            sample may always differ, so that few samples are judged by SQNR.
        min_sqnr_db: signal to quantization-noise ratio in dB; ``None`` does not look. Saturating kernels give 16-26 dB,
            sound ones 27-60, the least where flips of single values grow through many layers.
        max_metric_change: how far the metric of an artifact on the validation data may be from that of the
            fake-quantized model, in either direction; ``None`` does not look.
        excuse_rounding: let pass what is at most twice as far from the fake-quantized model as that is from itself in
            float64 (:func:`lq.export.rounding.rounding_noise`): no int8 kernel can be expected to be nearer.
        on_failure: "error" leaves the artifact out and lets the run fail; "warn" keeps it.

    Raises:
        TypeError: for values of another type, such as text.
        ValueError: for values out of range.

    Example:
        >>> Gate(min_agreement=0.998, min_sqnr_db=40).batches
        10
    """

    batches: int = 10
    min_agreement: float | None = 0.99
    min_sqnr_db: float | None = ENOUGH_DB
    max_metric_change: float | None = None
    excuse_rounding: bool = True
    on_failure: str = "error"

    def __post_init__(self) -> None:
        check_integer("batches", self.batches, 10)
        check_flag("excuse_rounding", self.excuse_rounding)
        for name, example in (("min_agreement", 0.99), ("min_sqnr_db", 25), ("max_metric_change", 0.005)):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), example)
        if self.batches < 1:
            raise ValueError(f"batches={self.batches} must be at least 1.")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise ValueError(f"min_agreement={self.min_agreement} must be from 0 to 1 (0.99 is 99 %), or None.")
        if self.min_sqnr_db is not None and not math.isfinite(self.min_sqnr_db):
            raise ValueError(f"min_sqnr_db={self.min_sqnr_db} must be a number of dB, or None.")
        if self.max_metric_change is not None and not self.max_metric_change >= 0:
            raise ValueError(f"max_metric_change={self.max_metric_change} must be 0 or more, e.g. 0.005, or None.")
        if self.on_failure not in ON_FAILURE:
            raise ValueError(f"on_failure={self.on_failure!r} must be one of {', '.join(ON_FAILURE)}.")

    def complaint(self, parity: Parity) -> str:
        """What is wrong with these distances, or ""."""
        if self.min_sqnr_db is not None and not parity.sqnr_db >= self.min_sqnr_db:
            return f"SQNR {parity.sqnr_db:.1f} dB is below {self.min_sqnr_db:.1f} dB"
        if self.min_agreement is None or parity.agreement is None:
            return ""
        differing = round((1 - parity.agreement) * parity.samples)
        if differing > 1 and parity.agreement < self.min_agreement:
            return f"agreement {parity.agreement:.2%} is below {self.min_agreement:.2%}"
        return ""


@dataclass(frozen=True)
class Parity:
    """How far an artifact agrees with the fake-quantized model.

    Args:
        samples: compared.
        sqnr_db: of the outputs, in dB.
        max_abs_error: largest difference of two outputs.
        agreement: share of samples with the same largest output; ``None`` if it is no classifier.
        complaint: what the gate objects to, or "".
        first_layer: where the two part, if there is a complaint.
        remark: what else is to be known of the comparison.
    """

    samples: int
    sqnr_db: float
    max_abs_error: float
    agreement: float | None = None
    complaint: str = ""
    first_layer: str = ""
    remark: str = ""

    @property
    def passed(self) -> bool:
        """Whether the gate lets it through."""
        return not self.complaint

    def is_explained_by(self, noise: Parity) -> bool:
        """Whether the distances are at most twice those that rounding alone makes.

        The ratio of the outputs decides, since how many predictions change follows from it.

        Example:
            >>> Parity(100, 24.0, 0.2, agreement=0.97).is_explained_by(Parity(100, 28.0, 0.1, agreement=0.99))
            True
        """
        return self.sqnr_db >= noise.sqnr_db - _TWICE_DB

    @property
    def fidelity(self) -> dict[str, float]:
        """The measures without the verdict."""
        found = {"sqnr_db": self.sqnr_db, "max_abs_error": self.max_abs_error}
        return found if self.agreement is None else {"agreement": self.agreement, **found}

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "passed": self.passed}


def measure(expected: Sequence[Tensor], got: Sequence[Tensor], gate: Gate) -> Parity:
    """Compare outputs, batch by batch.

    Args:
        expected: of the fake-quantized model, each of shape (samples, ...).
        got: of the artifact, of the same shapes.
        gate: what they have to reach.

    Returns:
        the comparison, without ``first_layer``.

    Example:
        >>> scores = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
        >>> measure([scores], [scores * 1.5], Gate()).complaint
        'SQNR 6.0 dB is below 25.0 dB'
    """
    for a, b in zip(expected, got, strict=True):
        if a.shape != b.shape:
            shapes = f"{tuple(b.shape)} instead of {tuple(a.shape)}"
            return Parity(len(a), -math.inf, math.inf, complaint=f"its output has shape {shapes}")
    a, b = torch.cat([t.float().flatten() for t in expected]), torch.cat([t.float().flatten() for t in got])
    samples = sum(len(t) if t.dim() else 1 for t in expected)
    parity = Parity(samples, float(sqnr(a, b)), float(max_abs_error(a, b)), _agreement(expected, got))
    return replace(parity, complaint=gate.complaint(parity))


def check(directory: Path, kind: str, calls: Sequence[Inputs], expected: Sequence[Tensor], gate: Gate) -> Parity:
    """Load a model from the disk in a fresh process and compare it.

    Args:
        directory: the artifact.
        kind: which of its models.
        calls: inputs of the fake-quantized model.
        expected: its main outputs.
        gate: what has to be reached.

    Returns:
        the comparison; a model that does not run there is a complaint.
    """
    remark = ""
    try:
        got = run_in_fresh_process(directory, kind, calls)
    except WorkerError as error:
        # What is wrong with this machine is not held against the model; it is compared where it runs already.
        remark = f"it was compared in the process of the training, because {error}"
        got = _run_here(directory, kind, calls)
    except RuntimeError as error:
        return Parity(0, -math.inf, math.inf, complaint=str(error))
    return replace(measure(expected, got, gate), remark=remark)


def _run_here(directory: Path, kind: str, calls: Sequence[Inputs]) -> list[Tensor]:
    model = load(directory, kind)
    return [main_tensor(model(*args, **kwargs)) for args, kwargs in calls]


def metric_complaint(exact: Mapping[str, float], got: Mapping[str, float], gate: Gate) -> str:
    """What the gate objects to in the metrics of an artifact, or "".

    Args:
        exact: metrics of the fake-quantized model.
        got: of the artifact.
        gate: how far they may be apart.

    Example:
        >>> metric_complaint({"accuracy": 0.92}, {"accuracy": 0.90}, Gate(max_metric_change=0.01))
        'accuracy is 0.9 instead of 0.92'
    """
    if gate.max_metric_change is None:
        return ""
    far = [name for name in exact.keys() & got.keys() if not abs(exact[name] - got[name]) <= gate.max_metric_change]
    return ", ".join(f"{name} is {got[name]:.4g} instead of {exact[name]:.4g}" for name in sorted(far))


def _agreement(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float | None:
    if any(t.dim() < 2 or t.shape[1] < 2 for t in expected):
        return None
    counts = [t.numel() / t.shape[1] for t in expected]
    shares = [float(top1_agreement(a, b)) for a, b in zip(expected, got, strict=True)]
    return sum(n * share for n, share in zip(counts, shares, strict=True)) / sum(counts)
