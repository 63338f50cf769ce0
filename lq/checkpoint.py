"""QAT checkpoints: what the callback adds to them, and how they load without it."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lq.backends.prepare import is_prepared, prepare_without_example, qconfig_of
from lq.qconfig import QConfig
from lq.target import find_target, graft, is_grafted, target_of
from lq.tracing.trace import STATE

KEY = "lq"
FORMAT_VERSION = 1

Module = TypeVar("Module", bound=nn.Module)


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
                f"The checkpoint quantizes {_quoted(self.target)}, but this run {_quoted(target)}. "
                f"Use the target of that run: QATCallback(target={self.target or None!r})."
            )
        theirs, ours = dataclasses.asdict(self.qconfig), dataclasses.asdict(qconfig)
        differing = [f"{key}={theirs[key]!r} (here {ours[key]!r})" for key in theirs if theirs[key] != ours[key]]
        if differing:
            raise ValueError(
                f"The checkpoint was prepared with another qconfig: {', '.join(differing)}. Use the qconfig of that "
                "run, or start a new one from the float checkpoint."
            )


def load_checkpoint(path: str | Path, module: Module, *, weights_only: bool = True) -> Module:
    """Load a Lightning checkpoint of a QAT run, without a Trainer and without the callback.

    Args:
        path: of the ``.ckpt`` file.
        module: a new LightningModule of the class that was trained, or just the part that was quantized, in float;
            it is prepared as it was then. A prepared one only gets the weights.
        weights_only: refuse files that hold more than plain data; see :func:`torch.load`.

    Returns:
        the LightningModule itself, or the prepared GraphModule of a plain module; in evaluation mode, ready for
        :func:`lq.convert` (of a LightningModule's target).

    Raises:
        ValueError: if it is no QAT checkpoint, was written by a newer lq or before QAT started, or is one of another
            architecture.

    Example:
        >>> import tempfile
        >>> net = nn.Sequential(nn.Linear(4, 2))
        >>> path = Path(tempfile.mkdtemp()) / "float.ckpt"
        >>> torch.save({"state_dict": net.state_dict()}, path)
        >>> load_checkpoint(path, net)
        Traceback (most recent call last):
        ...
        ValueError: .../float.ckpt is a checkpoint of a float model: ...
    """
    saved = _read(Path(path), weights_only)
    entry = _entry(saved, path)
    if isinstance(module, LightningModule):
        _prepare_lightning_module(module, entry)
        loaded: nn.Module = module
        state = dict(saved["state_dict"])
    else:
        loaded = _prepared(module, entry)
        state = _part(saved["state_dict"], entry.target)
    _check_fit(state, loaded, f"{path} does not fit {type(module).__name__}")
    loaded.load_state_dict(state, strict=True)
    return loaded.eval()  # type: ignore[return-value]  # a GraphModule in the place of a plain module


def load_float(module: LightningModule, path: str | Path, weights_only: bool = True) -> None:
    """Load a Lightning checkpoint of a float run.

    Raises:
        ValueError: if it is none, is one of a QAT run, or does not fit.
    """
    saved = _read(Path(path), weights_only)
    if KEY in saved:
        raise ValueError(f"{path} is a checkpoint of a QAT run; give one of the float model.")
    _check_fit(saved["state_dict"], module, f"{path} does not fit {type(module).__name__}")
    module.load_state_dict(saved["state_dict"])


def is_qat_checkpoint(path: str | Path, weights_only: bool = True) -> bool:
    """Whether a checkpoint is one of a QAT run, rather than of the float model.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no Lightning checkpoint.
    """
    return KEY in _read(Path(path), weights_only)


def read_entry(path: str | Path, weights_only: bool = True) -> CheckpointEntry:
    """What a QAT run has written into a checkpoint.

    Raises:
        ValueError: as in :func:`load_checkpoint`.
    """
    return _entry(_read(Path(path), weights_only), path)


def _read(path: Path, weights_only: bool) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; give a file that ModelCheckpoint has written.")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=weights_only)
    except pickle.UnpicklingError as error:
        if not weights_only:
            raise
        raise ValueError(
            f"{path} holds more than plain data, such as hyperparameters of a class of its own. If you trust where it "
            "comes from: load_checkpoint(path, module, weights_only=False)."
        ) from error
    if not isinstance(saved, dict) or "state_dict" not in saved:
        raise ValueError(f"{path} is no Lightning checkpoint: it has no 'state_dict'. Give a file of ModelCheckpoint.")
    return saved


def _entry(saved: Mapping[str, Any], path: str | Path) -> CheckpointEntry:
    if KEY not in saved:
        raise ValueError(
            f"{path} is a checkpoint of a float model: QATCallback has added nothing to it. Load it into the float "
            "module, module.load_state_dict(torch.load(path)['state_dict']), and train or calibrate that."
        )
    entry = CheckpointEntry.from_dict(saved[KEY])
    if not entry.started:
        raise ValueError(
            f"{path} was written before QAT started (step {saved.get('global_step', '?')}), so it has no ranges. "
            "Choose a later checkpoint of that run, or resume it: trainer.fit(module, ckpt_path=path)."
        )
    return entry


def _prepare_lightning_module(module: LightningModule, entry: CheckpointEntry) -> None:
    if is_overridden("configure_model", module):
        module.configure_model()
    name = find_target(module, entry.target or None)
    if name != entry.target:
        raise ValueError(
            f"In the checkpoint {_quoted(entry.target)} is quantized, but of this {type(module).__name__} "
            f"{_quoted(name)} would be. Build the module as it was trained."
        )
    if is_grafted(module, name):
        entry.require_same_plan(name, qconfig_of(target_of(module, name)))
    else:
        graft(module, name, _prepared(target_of(module, name), entry))


def _prepared(module: nn.Module, entry: CheckpointEntry) -> Any:
    if is_prepared(module):
        entry.require_same_plan(entry.target, qconfig_of(module))
        return module
    return prepare_without_example(module, entry.qconfig, frozenset(entry.passed), vendor=entry.vendor)


def _part(state: Mapping[str, Any], target: str) -> dict[str, Any]:
    prefix = f"{target}." if target else ""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _check_fit(state: Mapping[str, Any], module: nn.Module, complaint: str) -> None:
    """Say how the architectures differ, before torch says it key by key."""
    ours = module.state_dict()
    missing, extra = _first(ours.keys() - state.keys()), _first(state.keys() - ours.keys())
    shapes = [
        f"{key} {tuple(state[key].shape)} (here {tuple(value.shape)})"
        for key, value in ours.items()
        if isinstance(value, Tensor) and key in state and state[key].shape != value.shape and f"{STATE}." not in key
    ]
    found = {"it lacks": missing, "it has besides": extra, "other shapes": _first(shapes)}
    if any(found.values()):
        differences = "; ".join(f"{what} {names}" for what, names in found.items() if names)
        raise ValueError(f"{complaint}: {differences}. Build the module as it was trained.")


def _first(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")


def _quoted(target: str) -> str:
    return repr(target) if target else "the LightningModule itself"
