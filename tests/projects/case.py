"""What a project's file declares, and what comes of a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import LightningModule


@dataclass(frozen=True)
class Fit:
    """What goes into ``trainer.fit``: the module, and the data by the names of its arguments."""

    module: LightningModule
    data: Mapping[str, Any]

    def run(self, trainer: Any) -> None:
        """Train, as a user does."""
        trainer.fit(self.module, **self.data)


@dataclass(frozen=True)
class Case:
    """One LightningModule of a project.

    Args:
        name: what the table calls it, as a rule the class.
        build: makes module and data, small and without any download.
        metric: the module's own figure, as it logs it in validation.
        epochs: of float training, and then of QAT.
        arguments: of ``QATCallback``, where the defaults do not do.
        reason: for them.
        trainer: further arguments of the Trainer, as the project wants them for its float training, too.
        note: what else a reader of the table should know.
    """

    name: str
    build: Callable[[], Fit]
    metric: str
    epochs: tuple[int, int] = (4, 3)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        if bool(self.arguments) != bool(self.reason):
            raise ValueError(f"{self.name}: arguments of the callback need a reason, and the other way round.")


@dataclass
class Outcome:
    """A row of the table.

    Args:
        project: name of the file, without ``of_``.
        version: of the package.
        case: name of the case.
        target: what was quantized; "" is the whole module.
        arguments: what the callback was given.
        share: of the multiply-accumulates that run in int8.
        metric: name of the module's own figure.
        fp32: that figure for the float model, before QAT.
        fake: that figure for the fake-quantized model, which the artifact shall equal.
        int8: that figure for the artifact.
        sqnr_db: of the artifact against the fake-quantized model.
        gate: "passed", what the gate objected to, or "" if it was never reached.
        error: what went wrong before or behind the gate, or "".
        note: reasons for arguments and the like.
        seconds: that the case took.
    """

    project: str
    version: str
    case: str
    target: str = ""
    arguments: str = ""
    share: float | None = None
    metric: str = ""
    fp32: float | None = None
    fake: float | None = None
    int8: float | None = None
    sqnr_db: float | None = None
    gate: str = ""
    error: str = ""
    note: str = ""
    seconds: float = 0.0

    @property
    def works(self) -> bool:
        """Whether the artifact passed the gate and both figures are there."""
        return self.gate == "passed" and not self.error and None not in (self.fp32, self.int8)
