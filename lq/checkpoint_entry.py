"""What the callback adds to the checkpoints of a QAT run: enough to prepare the float module again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lq.backends.prepare import prepare_again, prepare_without_example
from lq.qconfig import QConfig

KEY = "lq"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class CheckpointEntry:
    """What a QAT checkpoint holds beside weights: enough to prepare the float module again, as plain data.

    Args:
        target: dotted name of the quantized part; "" is the LightningModule itself.
        qconfig: what it was prepared with.
        passed: parameters of its ``forward`` that calls pass.
        started: whether fake quantization had started.
        fp32: figures of the float model.
        vendor: what its backend took from outside of lq, such as a quantizer of PT2E.
        plan: of a target that was instrumented in place, all that is needed to do so again.
        history: rows of what was logged so far, for the pictures at the end; see :mod:`lq.report.plots.training`.

    Example:
        >>> entry = CheckpointEntry("model", QConfig("x86_vnni"), started=True)
        >>> CheckpointEntry.from_dict(entry.to_dict()) == entry
        True
    """

    target: str
    qconfig: QConfig
    passed: tuple[str, ...] = ()
    started: bool = False
    fp32: Mapping[str, float] = field(default_factory=dict)
    vendor: Mapping[str, Any] | None = None
    plan: Mapping[str, Any] | None = None
    history: Sequence[Mapping[str, float]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data that loads with ``weights_only=True``."""
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self), "history": list(self.history)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> CheckpointEntry:
        """Read what :meth:`to_dict` wrote.

        Raises:
            ValueError: if another version of lq wrote it in a way that this one does not know.
        """
        version = plain.get("format_version", 0)
        if version != FORMAT_VERSION:
            raise ValueError(
                f"The checkpoint's QAT entry has format version {version}; this lq reads version {FORMAT_VERSION}. "
                + ("Install the lq that wrote it, or a newer one." if version > FORMAT_VERSION else "Train it again.")
            )
        values = {f.name: plain[f.name] for f in dataclasses.fields(cls) if f.name in plain}
        values["qconfig"], values["passed"] = QConfig.from_dict(plain["qconfig"]), tuple(plain["passed"])
        values["history"] = tuple(plain.get("history", ()))  # the first checkpoints have none
        return cls(**values)

    def require_same_plan(self, target: str, qconfig: QConfig) -> None:
        """Refuse to go on with another target or other grids than those of the checkpoint.

        Raises:
            ValueError: naming the difference.
        """
        if self.target != target:
            raise ValueError(
                f"The checkpoint quantizes {quoted(self.target)}, but this run {quoted(target)}. "
                f"Use the target of that run: QATCallback(target={self.target or None!r})."
            )
        theirs, ours = dataclasses.asdict(self.qconfig), dataclasses.asdict(qconfig)
        differing = [f"{key}={theirs[key]!r} (here {ours[key]!r})" for key in theirs if theirs[key] != ours[key]]
        if differing:
            raise ValueError(
                f"The checkpoint was prepared with another qconfig: {', '.join(differing)}. Use the qconfig of that "
                "run, or start a new one from the float checkpoint."
            )

    def prepare(self, module: nn.Module, target: str, qconfig: QConfig) -> nn.Module:
        """Prepare a float module as it was then, without asking its backend again.

        Args:
            module: the part to quantize.
            target: its name.
            qconfig: what this run would prepare it with.

        Raises:
            ValueError: if the checkpoint has another target or qconfig.
        """
        self.require_same_plan(target, qconfig)
        if self.plan is not None:
            return prepare_again(module, self.qconfig, self.plan)
        return prepare_without_example(module, self.qconfig, frozenset(self.passed), vendor=self.vendor)


def quoted(target: str) -> str:
    """The name of a target in a message."""
    return repr(target) if target else "the LightningModule itself"
