"""What comparing versions of a model finds, and what a run leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lq.export.artifact.int8_model import Int8Model
from lq.export.parity.gate import Parity
from lq.metrics.confirmed import OwnAccuracy
from lq.metrics.detections import Comparable
from lq.tracing.structure import Inputs

Calls = Sequence[tuple[Inputs, Comparable]]


@dataclass(frozen=True)
class Compared:
    """What running several versions of a model on the same data has found.

    Args:
        results: figures by version, and how far each agrees with the fake-quantized one as ``<version>_vs_fake``.
        calls: inputs and main output of some calls of the fake-quantized model.
        counts: names of the figures that the gate looks at.
        notes: to be read beside the table.
        accuracy: which of the module's own figures is its accuracy, if that is known.

    Example:
        >>> found = Compared({"fake": {"val_acc": 0.91}, "onnx": {"val_acc": 0.9}, "onnx_vs_fake": {"sqnr_db": 40.2}})
        >>> found.results["onnx"], found.calls
        ({'val_acc': 0.9}, ())
    """

    results: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    calls: Calls = ()
    counts: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    accuracy: OwnAccuracy | None = None


Compare = Callable[[Mapping[str, Int8Model], int], Compared]


@dataclass
class Deployment:
    """The result of a run: int8 models, figures, and where the files are.

    Args:
        models: the int8 models by exporter, loaded again from the disk.
        rows: rows of the closing table.
        results: figures by version, and how closely each int8 model agrees with the fake-quantized one.
        parity: what the gate measured, by exporter.
        directory: directory or URL of the artifact, if one was written.
        rejected: directory of the files that did not pass the gate; of all files, if an older artifact was kept.
        notes: notes on the table.
        failures: errors of single exporters, whose files are not in the artifact.

    Example:
        >>> print(Deployment(parity={"onnx": Parity(512, 54.2, 0.1, agreement=0.998)}, directory="int8"))
        artifact in int8: onnx (99.80 % agreement, 54.2 dB)
        >>> Deployment(failures=["'onnx' does not run"]).raise_failures()
        Traceback (most recent call last):
        RuntimeError: 'onnx' does not run. The trained weights are safe; nothing was written.
    """

    models: dict[str, Int8Model] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, dict[str, float]] = field(default_factory=dict)
    parity: dict[str, Parity] = field(default_factory=dict)
    directory: Path | str | None = None
    rejected: Path | str | None = None
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        where = "no artifact" if self.directory is None else f"artifact in {self.directory}"
        files = ", ".join(f"{kind} ({_closeness(parity)})" for kind, parity in self.parity.items())
        return "\n".join([f"{where}: {files}" if files else where, *self.notes, *self.failures])

    def raise_failures(self) -> None:
        """Raise an error if an exporter failed.

        Raises:
            RuntimeError: naming what failed and where the other files are.
        """
        if self.failures:
            where = "nothing was written" if self.directory is None else f"everything else is in {self.directory}"
            if self.rejected is not None:
                kept = f"what did not pass is kept in {self.rejected}"
                # Without a directory of its own all of it is there: the artifact of an earlier run stayed.
                where = kept if self.directory is None else f"{kept}, {where}"
            raise RuntimeError(f"{'; '.join(self.failures)}. The trained weights are safe; {where}.")


def _closeness(parity: Parity) -> str:
    agreement = "" if parity.agreement is None else f"{parity.agreement:.2%} agreement, ".replace("%", " %")
    return f"{agreement}{parity.sqnr_db:.1f} dB"
