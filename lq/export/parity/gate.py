"""The parity gate: does what is deployed compute what was trained?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lq.checks import check_flag, check_integer, check_number
from lq.export.artifact.int8_model import load
from lq.export.parity.fresh_process import WorkerError
from lq.export.parity.worker import Worker
from lq.metrics.detections import Comparable, Detections, comparable, detection_agreement, main_of, mismatch
from lq.metrics.fidelity import max_abs_error, sqnr, top1_agreement
from lq.tracing.structure import Inputs

ENOUGH_DB = 25.0
_TWICE_DB = 20 * math.log10(2)
_NOTHING = 1e-6
ON_FAILURE = ("error", "warn")
_NUMBERS = {"min_agreement": 0.99, "min_detection_agreement": 0.8, "min_sqnr_db": 25, "max_metric_change": 0.005}


@dataclass(frozen=True)
class Gate:
    """How closely an exported file has to agree with the fake-quantized model, on real batches.

    Args:
        batches: how many validation batches are compared.
        min_agreement: least share of samples with the same largest output (top-1); ``None`` switches this check off.
            One sample may always differ, so that a few samples are compared by SQNR alone.
        min_detection_agreement: least share of the boxes that a detector and its file have in common
            (:func:`lq.metrics.detections.detection_agreement`); ``None`` switches this check off. Of boxes that overlap
            and whose scores nearly tie, rounding decides which one is kept: what is before that choice has to reach
            ``min_sqnr_db``.
        min_sqnr_db: least signal to quantization-noise ratio in dB; ``None`` switches this check off. Kernels that
            saturate give 16-26 dB, correct ones 27-60 dB. The lowest of these are in networks of many layers, where
            small differences grow.
        max_metric_change: largest difference, in either direction, between the file's validation figure and that of the
            fake-quantized model; ``None`` switches this check off.
        excuse_rounding: accept a file whose difference from the fake-quantized model is at most twice the difference
            between that model in float32 and in float64 (:func:`lq.export.parity.rounding.rounding_noise`). An int8
            kernel cannot be expected to be closer than that.
        simulated: how many samples are compared where a simulator or reference kernels run the file in place of its
            chip (exporters "qnn" and "mcu"), which is slow.
        on_failure: "error" leaves the file out and fails the run; "warn" keeps it and warns.

    Raises:
        TypeError: for values of another type, such as text.
        ValueError: for values out of range.

    Example:
        >>> Gate(min_agreement=0.998, min_sqnr_db=40).batches
        10
    """

    batches: int = 10
    min_agreement: float | None = 0.99
    min_detection_agreement: float | None = 0.8
    min_sqnr_db: float | None = ENOUGH_DB
    max_metric_change: float | None = None
    excuse_rounding: bool = True
    simulated: int = 32
    on_failure: str = "error"

    def __post_init__(self) -> None:
        check_integer("batches", self.batches, 10, least=1)
        check_integer("simulated", self.simulated, 32, least=1)
        check_flag("excuse_rounding", self.excuse_rounding)
        for name, example in _NUMBERS.items():
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), example)
        for name in ("min_agreement", "min_detection_agreement"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name}={share} must be from 0 to 1 (0.99 is 99 %), or None.")
        if self.min_sqnr_db is not None and not math.isfinite(self.min_sqnr_db):
            raise ValueError(f"min_sqnr_db={self.min_sqnr_db} must be a number of dB, or None.")
        if self.max_metric_change is not None and not self.max_metric_change >= 0:
            raise ValueError(f"max_metric_change={self.max_metric_change} must be 0 or more, e.g. 0.005, or None.")
        if self.on_failure not in ON_FAILURE:
            raise ValueError(f"on_failure={self.on_failure!r} must be one of {', '.join(ON_FAILURE)}.")

    def complaint(self, parity: Parity) -> str:
        """Why these differences are too large, or ""."""
        if self.min_sqnr_db is not None and not parity.sqnr_db >= self.min_sqnr_db:
            return f"SQNR {parity.sqnr_db:.1f} dB is below {self.min_sqnr_db:.1f} dB"
        if parity.detections:
            least, found = self.min_detection_agreement, parity.agreement
            few = least is not None and found is not None and found < least
            return f"agreement of the detections {found:.2%} is below {least:.2%}" if few else ""
        if self.min_agreement is None or parity.agreement is None:
            return ""
        differing = round((1 - parity.agreement) * parity.samples)
        if differing > 1 and parity.agreement < self.min_agreement:
            return f"agreement {parity.agreement:.2%} is below {self.min_agreement:.2%}"
        return ""


@dataclass(frozen=True)
class Parity:
    """How closely an exported file agrees with the fake-quantized model.

    Args:
        samples: number of samples that were compared.
        sqnr_db: SQNR of the outputs, in dB; of several the lowest.
        max_abs_error: largest absolute difference of an output.
        agreement: share of samples with the same largest output, or of the same detections; ``None`` if the outputs
            have no classes.
        complaint: why the file does not pass the gate, or "".
        first_layer: the first layer at which the two differ, if there is a complaint.
        note: a note on the comparison.
        detections: whether it is of a detector, whose SQNR and error are those before boxes are chosen.
        outputs: of several outputs the SQNR of each, in dB, the main one first.

    Example:
        >>> Parity(samples=512, sqnr_db=38.2, max_abs_error=0.1, agreement=0.998).passed
        True
    """

    samples: int
    sqnr_db: float
    max_abs_error: float
    agreement: float | None = None
    complaint: str = ""
    first_layer: str = ""
    note: str = ""
    detections: bool = False
    outputs: tuple[float, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the file passes the gate."""
        return not self.complaint

    def is_explained_by(self, noise: Parity, gate: Gate | None = None) -> bool:
        """Whether the difference is at most twice the one that rounding alone makes.

        SQNR decides; how many predictions change follows from it. Of several outputs each is looked at, but for those
        that pass the gate anyway.

        Example:
            >>> Parity(100, 24.0, 0.2, agreement=0.97).is_explained_by(Parity(100, 28.0, 0.1, agreement=0.99))
            True
        """
        if len(self.outputs) != len(noise.outputs):
            return False
        main, *others = zip(self.outputs or (self.sqnr_db,), noise.outputs or (noise.sqnr_db,), strict=True)
        least = math.inf if gate is None or gate.min_sqnr_db is None else gate.min_sqnr_db
        agrees = gate is not None and not gate.complaint(replace(self, sqnr_db=math.inf))
        pairs = [(main, least if agrees else math.inf), *((pair, least) for pair in others)]
        return all(own >= enough or own >= of_noise - _TWICE_DB for (own, of_noise), enough in pairs)

    @property
    def fidelity(self) -> dict[str, float]:
        """The figures, without the decision."""
        found = {"sqnr_db": self.sqnr_db, "max_abs_error": self.max_abs_error}
        return found if self.agreement is None else {"agreement": self.agreement, **found}

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        plain = {**asdict(self), "passed": self.passed}
        return plain if self.outputs else {key: value for key, value in plain.items() if key != "outputs"}


def measure(expected: Sequence[Comparable], got: Sequence[Comparable], gate: Gate) -> Parity:
    """Compare outputs, batch by batch.

    Args:
        expected: of the fake-quantized model, each of shape (samples, ...), or what a detector found in each image. Of
            several outputs each is compared, and the farthest counts; the agreement is that of the main one.
        got: of the artifact, of the same shapes. Of detections only the agreement is measured.
        gate: what they have to reach.

    Returns:
        the comparison, without ``first_layer``.

    Example:
        >>> scores = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
        >>> measure([scores], [scores * 1.5], Gate()).complaint
        'SQNR 6.0 dB is below 25.0 dB'
    """
    for a, b in zip(expected, got, strict=True):
        problem = mismatch(a, b)
        if problem:
            return Parity(samples_in(a), -math.inf, math.inf, complaint=problem)
    samples = sum(map(samples_in, expected))
    found, images = _images(expected), _images(got)
    tensors, others = _tensors(expected), _tensors(got)
    if found:
        parity = Parity(samples, math.inf, 0.0, detection_agreement(found, images), detections=True)
    elif not tensors:
        parity = Parity(samples, math.inf, 0.0)
    else:
        parity = replace(_closeness(samples, tensors, others), agreement=_agreement(tensors, others))
    parity = replace(parity, complaint=gate.complaint(parity))
    outputs = [parity.sqnr_db]
    for a, b in _further(expected, got):
        finite = _finite(a, b)
        if any(map(torch.numel, finite[0])):
            other = _closeness(samples, *finite)
            if other.max_abs_error <= _NOTHING and not any(map(torch.any, finite[0])):
                other = replace(other, sqnr_db=math.inf)  # zeros have no power to compare with
            outputs.append(other.sqnr_db)
            parity = _worse(parity, other, tuple(a[0].shape), gate)
    return replace(parity, outputs=tuple(outputs) if len(outputs) > 1 else ())


def _closeness(samples: int, expected: Sequence[Tensor], got: Sequence[Tensor]) -> Parity:
    a, b = (torch.cat([tensor.float().flatten() for tensor in side]) for side in (expected, got))
    return Parity(samples, float(sqnr(a, b)), float(max_abs_error(a, b)))


def _worse(parity: Parity, other: Parity, shape: tuple[int, ...], gate: Gate) -> Parity:
    """The main output with the figures of a further one that is farther away."""
    if other.sqnr_db >= parity.sqnr_db:  # not so if one is no number
        return parity
    complaint = gate.complaint(other)
    about = f"{complaint} in the output of shape {shape}" if complaint else ""
    error = max(parity.max_abs_error, other.max_abs_error)
    return replace(parity, sqnr_db=other.sqnr_db, max_abs_error=error, complaint=about or parity.complaint)


def check(
    directory: Path, kind: str, calls: Sequence[Inputs], expected: Sequence[Comparable], gate: Gate, worker: Worker
) -> Parity:
    """Load a model from the disk in a fresh process and compare it.

    Args:
        directory: the artifact.
        kind: which of its models.
        calls: inputs of the fake-quantized model.
        expected: what is compared of its outputs.
        gate: what has to be reached.
        worker: the process.

    Returns:
        the comparison; a model that does not run there is a complaint.

    Example:
        >>> import tempfile
        >>> from lq.export.artifact.manifest import write_manifest
        >>> from lq.export.artifact.signature import Signature
        >>> from lq.export.exporters import chosen
        >>> from lq.ptq.static import prepare_static
        >>> (choice,), x = chosen(["torch"]), torch.rand(8, 4)
        >>> prepared, call = prepare_static(torch.nn.Sequential(torch.nn.Linear(4, 2)), [x]), ((x,), {})
        >>> with tempfile.TemporaryDirectory() as place, Worker() as worker:
        ...     info, signature = choice.export(prepared, call, Path(place)), Signature.of(prepared, call, prepared(x))
        ...     write_manifest(Path(place), {"artifacts": {"torch": info}, "signature": signature.to_dict()})
        ...     parity = check(Path(place), "torch", [call], [prepared(x).detach()], Gate(), worker)
        >>> parity.passed, parity.samples
        (True, 8)
    """
    note = ""
    try:
        got = worker.run(directory, kind, calls)
    except WorkerError as error:
        # What is wrong with this machine is not held against the model; it is compared where it runs already.
        note = f"it was compared in the process of the training, because {error}"
        try:
            got = _run_here(directory, kind, calls)
        except Exception as reason:  # whatever the runtime of the file raises
            return Parity(0, -math.inf, math.inf, complaint=f"{type(reason).__name__}: {reason}", note=note)
    except RuntimeError as error:
        return Parity(0, -math.inf, math.inf, complaint=str(error))
    return replace(measure(expected, got, gate), note=note)


def _run_here(directory: Path, kind: str, calls: Sequence[Inputs]) -> list[Comparable]:
    model = load(directory, kind)
    return [comparable(model(*args, **kwargs)) for args, kwargs in calls]


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


def samples_in(output: Comparable) -> int:
    """How many samples an output is of.

    Example:
        >>> samples_in(torch.zeros(8, 10)), samples_in(torch.zeros(()))
        (8, 1)
    """
    main = main_of(output)
    return len(main) if isinstance(main, list) or main.dim() else 1


def _agreement(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float | None:
    if any(t.dim() < 2 or t.shape[1] < 2 for t in expected):
        return None
    counts = [t.numel() / t.shape[1] for t in expected]
    shares = [float(top1_agreement(a, b)) for a, b in zip(expected, got, strict=True)]
    return sum(n * share for n, share in zip(counts, shares, strict=True)) / sum(counts)


def _further(expected: Sequence[Comparable], got: Sequence[Comparable]) -> Iterator[Any]:
    """Every output behind the main one, in all batches, of both sides."""
    sides = ([out[1:] if isinstance(out, tuple) else () for out in side] for side in (expected, got))
    return zip(*(zip(*side, strict=True) for side in sides), strict=True)


def _finite(expected: Sequence[Tensor], got: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The values that are finite in the reference: masks hold infinity."""
    kept = [torch.isfinite(tensor) for tensor in expected]
    return [t[k] for t, k in zip(expected, kept, strict=True)], [t[k] for t, k in zip(got, kept, strict=True)]


def _images(outputs: Sequence[Comparable]) -> Detections:
    return [image for output in outputs if isinstance(output, list) for image in output]


def _tensors(outputs: Sequence[Comparable]) -> list[Tensor]:
    """Those that have elements."""
    mains = map(main_of, outputs)
    return [output for output in mains if isinstance(output, Tensor) and output.numel()]
