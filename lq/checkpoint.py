"""Checkpoints of QAT runs and of float ones, as they load without the callback."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lq.backends.prepare import is_prepared, qconfig_of
from lq.checkpoint_entry import KEY, CheckpointEntry, quoted
from lq.packages import is_lightning_module, overrides
from lq.target import find_target, graft, is_grafted, target_of
from lq.tracing.trace import STATE

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Checkpoint:
    """A Lightning checkpoint, read once.

    Args:
        path: of the file.
        content: what is in it.
    """

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | Path, weights_only: bool = True) -> Checkpoint:
        """Read a file.

        Args:
            path: of the file.
            weights_only: refuse files that hold more than plain data.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no Lightning checkpoint, or holds more than plain data.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no checkpoint {path}; give a file that ModelCheckpoint has written.")
        try:
            content = torch.load(path, map_location="cpu", weights_only=weights_only)
        except pickle.UnpicklingError as error:
            if not weights_only:
                raise
            raise ValueError(
                f"{path} holds more than plain data, such as hyperparameters of a class of its own. If you trust "
                "where it comes from: load_checkpoint(path, module, weights_only=False)."
            ) from error
        if not isinstance(content, dict) or "state_dict" not in content:
            raise ValueError(
                f"{path} is no Lightning checkpoint: it has no 'state_dict'. Give a file of ModelCheckpoint."
            )
        return cls(path, content)

    @property
    def is_qat(self) -> bool:
        """Whether it is one of a QAT run, rather than of the float model."""
        return KEY in self.content

    @property
    def entry(self) -> CheckpointEntry:
        """What the QAT run has written into it.

        Raises:
            ValueError: if it is one of a float run, of another version of lq, or from before QAT started.
        """
        if not self.is_qat:
            raise ValueError(
                f"{self.path} is a checkpoint of a float model: QATCallback has added nothing to it. Load it into the "
                "float module, module.load_state_dict(torch.load(path)['state_dict']), and train or calibrate that."
            )
        entry = CheckpointEntry.from_dict(self.content[KEY])
        if not entry.started:
            raise ValueError(
                f"{self.path} was written before QAT started (step {self.content.get('global_step', '?')}), so it has "
                "no ranges. Choose a later checkpoint of that run, or resume it: trainer.fit(module, ckpt_path=path)."
            )
        return entry

    def load_qat(self, module: Module) -> Module:
        """Prepare a float module as it was in the QAT run, and give it the weights; see :func:`load_checkpoint`."""
        entry, state = self.entry, dict(self.content["state_dict"])
        if is_lightning_module(module):
            _prepare_lightning_module(module, entry)
            loaded: nn.Module = module
        else:
            loaded = _prepared(module, entry)
            state = _part(state, entry.target)
        _check_fit(state, loaded, f"{self.path} does not fit {type(module).__name__}")
        loaded.load_state_dict(state, strict=True)
        return loaded.eval()  # type: ignore[return-value]  # a GraphModule in the place of a plain module

    def load_float(self, module: nn.Module) -> None:
        """Give a module the weights of a float run.

        Raises:
            ValueError: if it is one of a QAT run, or does not fit.
        """
        if self.is_qat:
            raise ValueError(f"{self.path} is a checkpoint of a QAT run; give one of the float model.")
        _check_fit(self.content["state_dict"], module, f"{self.path} does not fit {type(module).__name__}")
        module.load_state_dict(self.content["state_dict"])


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
    return Checkpoint.read(path, weights_only).load_qat(module)


def _prepare_lightning_module(module: LightningModule, entry: CheckpointEntry) -> None:
    if overrides(module, "configure_model"):
        module.configure_model()
    name = find_target(module, entry.target or None)
    if name != entry.target:
        raise ValueError(
            f"In the checkpoint {quoted(entry.target)} is quantized, but of this {type(module).__name__} "
            f"{quoted(name)} would be. Build the module as it was trained."
        )
    if is_grafted(module, name):
        entry.require_same_plan(name, qconfig_of(target_of(module, name)))
    else:
        graft(module, name, _prepared(target_of(module, name), entry))


def _prepared(module: nn.Module, entry: CheckpointEntry) -> Any:
    if is_prepared(module):
        entry.require_same_plan(entry.target, qconfig_of(module))
        return module
    return entry.prepare(module, entry.target, entry.qconfig)


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
