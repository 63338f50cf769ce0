"""What the callback adds to the checkpoints of a QAT run: enough to prepare the float module again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lq.backends.prepare import prepare_again
from lq.config.points import Point
from lq.config.qconfig import QConfig
from lq.config.schedule import Began
from lq.config.specs import ActivationSpec, WeightSpec
from lq.fields import Field
from lq.instrument.record import has_lazy_layers, initialize_lazy
from lq.tracing.inputs import made_inputs
from lq.tracing.structure import Inputs

KEY = "lq"
TEACHER = "lq_teacher"  # the float weights of a run that learns from them
FORMAT_VERSION = 1


@dataclass(frozen=True)
class CheckpointEntry:
    """What a QAT checkpoint holds beside weights: enough to prepare the float module again, as plain data.

    Args:
        target: dotted name of the quantized part; "" is the LightningModule itself.
        qconfig: what it was prepared with.
        started: whether fake quantization had started.
        fp32: figures of the float model.
        plan: all that is needed to instrument the target again, see :meth:`lq.tracing.plan.Plan.to_dict`.
        history: rows of what was logged so far, for the pictures at the end; see :mod:`lq.report.plots.training`.
        ptq: figures of the model quantized without training, if QAT started from that.
        calibrated: whether ranges could be calibrated before QAT, where that was wanted.
        began: where QAT began, if it has.
        start: the setting of the schedule that said where.

    Example:
        >>> entry = CheckpointEntry("model", QConfig("x86_vnni"), started=True)
        >>> CheckpointEntry.from_dict(entry.to_dict()) == entry
        True
    """

    target: str
    qconfig: QConfig
    started: bool = False
    fp32: Mapping[str, float] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    ptq: Mapping[str, float] = field(default_factory=dict)
    calibrated: bool = True
    began: Began | None = None
    start: int | float | str | None = None

    @property
    def example(self) -> Inputs | None:
        """Inputs like those of the call that was planned, all zeros; ``None`` if the plan does not say."""
        inputs = self.plan.get("inputs")
        try:
            return None if inputs is None else made_inputs(inputs)
        except (KeyError, TypeError):  # of a class that earlier versions have written down
            return None

    def to_dict(self) -> dict[str, Any]:
        """Plain data that loads with ``weights_only=True``."""
        plain = {**dataclasses.asdict(self), "qconfig": self.qconfig.as_given(), "history": list(self.history)}
        began = {} if self.began is None else {"epochs": self.began.epochs, "steps": self.began.steps}
        return {"format_version": FORMAT_VERSION, **plain, "began": began}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], where: str = f"checkpoint: {KEY}") -> CheckpointEntry:
        """Read what :meth:`to_dict` wrote; nothing that it names is imported or called.

        Args:
            plain: of whatever origin.
            where: file and entry that it comes from, for messages.

        Raises:
            ValueError: if another version of lq wrote it in a way that this one does not know, or it was tampered with;
                naming file and field.
        """
        given = Field(plain, where)
        version = given.get("format_version", 0).integer(0)
        if version != FORMAT_VERSION:
            raise ValueError(
                f"The checkpoint's QAT entry has format version {version}; this lq reads version {FORMAT_VERSION}. "
                + ("Install the lq that wrote it, or a newer one." if version > FORMAT_VERSION else "Train it again.")
            )
        return cls(
            given["target"].text(),
            _qconfig(given["qconfig"]),
            given.get("started", False).flag(),
            {name: _figure(value) for name, value in given.get("fp32", {}).items()},
            given["plan"].mapping(),
            # the first checkpoints have none
            tuple({name: _figure(value) for name, value in row.items()} for row in given.get("history", ()).each()),
            {name: _figure(value) for name, value in given.get("ptq", {}).items()},
            given.get("calibrated", True).flag(),
            _began(given.get("began", {})),
            _start(given.get("start", None)),
        )

    def require_same_plan(self, target: str, qconfig: QConfig) -> None:
        """Refuse to go on with another target or other grids than those of the checkpoint.

        Raises:
            ValueError: naming the difference.
        """
        if self.target != target:
            raise ValueError(
                f"The checkpoint quantizes {quoted(self.target)}, but this run {quoted(target)}. "
                f"Use the target of that run: QATCallback(target={self.target!r})."
            )
        differing = self.qconfig.differences(qconfig)
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
        if has_lazy_layers(module) and self.example is not None:
            initialize_lazy(module, *self.example)
        try:
            return prepare_again(module, self.qconfig, self.plan)
        except (KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"checkpoint: {KEY}.plan is not what QATCallback writes ({reason}).") from error


_GRIDS: dict[str, type[WeightSpec] | type[ActivationSpec]] = {"weight": WeightSpec, "activation": ActivationSpec}


def _qconfig(given: Field) -> QConfig:
    """A QConfig, every field of it checked for its type before its own checks compare them."""
    for name in ("preset", "backend", "quantizer", "keep", "attention", "recurrence"):
        given.get(name, "").text()
    for name in ("include", "exclude"):
        for pattern in given.get(name, ()).each():
            pattern.text()
    for name, check in (("engine", Field.text), ("fuse_add", Field.flag)):
        optional = given.get(name, None)
        if optional.value is not None:
            check(optional)
    given.get("quantizer_options", {}).mapping()
    _check_grids(given)
    for _, layer in given["overrides"].items():
        _check_grids(layer)
    try:
        return QConfig.from_dict(given.mapping())
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{given.where} is no qconfig: {error}") from error


def _check_grids(given: Field) -> None:
    for name, kind in _GRIDS.items():
        grid, known = given[name], {f.name: f.default for f in dataclasses.fields(kind)}
        for key, value in grid.items() if grid.value is not None else ():
            if key not in known:
                raise ValueError(f"{grid.where} has {key!r}, which no grid has. Install the lq that wrote it.")
            _CHECKS[type(known[key])](value)


def _began(given: Field) -> Began | None:
    """Where QAT began; older checkpoints do not say it, and those from before the start cannot."""
    return Began(given["epochs"].number(), given["steps"].number()) if given.mapping() else None


def _start(given: Field) -> int | float | str | None:
    """A point of a schedule; older checkpoints have none."""
    if given.value is None:
        return None
    try:
        Point.parse("start", given.value)
    except (TypeError, ValueError) as error:
        raise given.error("a point of a training") from error
    start: int | float | str = given.value
    return start


def _figure(given: Field) -> float:
    """A logged number; a metric may well have been NaN."""
    if not isinstance(given.value, (int, float)) or isinstance(given.value, bool):
        raise given.error("a number")
    return given.value


def _range(given: Field) -> None:
    """Two numbers, or none."""
    if given.value is not None:
        for end in given.each():
            end.number()


_CHECKS: dict[type, Callable[[Field], Any]] = {
    bool: Field.flag,
    int: Field.integer,
    float: Field.number,
    str: Field.text,
    type(None): _range,  # of ``fixed_range``
}


def quoted(target: str) -> str:
    """The name of a target in a message.

    Example:
        >>> quoted("model"), quoted("")
        ("'model'", 'the LightningModule itself')
    """
    return repr(target) if target else "the LightningModule itself"
