"""Checkpoints of QAT runs and of float ones, as they load without the callback."""

from __future__ import annotations

import errno
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lq.backends.prepare import is_prepared, qconfig_of
from lq.checkpoints.entry import KEY, CheckpointEntry
from lq.checkpoints.sharded import is_sharded_checkpoint, read_whole
from lq.checks import check_path
from lq.compat.packages import is_lightning_module
from lq.core.checkpoint import from_bytes, part_of_state, versions_of
from lq.core.state import STATE
from lq.export.artifact.remote import local_path
from lq.fields import Field
from lq.lightning_module.target import build_layers, find_target, target_of
from lq.messages import one_line, some_of

Module = TypeVar("Module", bound=nn.Module)


def _read_folder(path: Path, weights_only: bool) -> dict[str, Any]:
    if weights_only:
        raise ValueError(
            f"{path} is a sharded checkpoint, a folder of pickles. If you trust where it comes from: "
            "--weights_only false, or load_checkpoint(path, module, weights_only=False)."
        )
    content = read_whole(path)
    check_state(Field(content, str(path))["state_dict"])
    return content


@dataclass(frozen=True)
class Checkpoint:
    """A Lightning checkpoint, read once.

    Args:
        path: of the file, or of the folder of a sharded one.
        content: what is in it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"0.weight": torch.ones(1, 1)}}, f"{folder}/float.ckpt")
        ...     checkpoint = Checkpoint.read(f"{folder}/float.ckpt")
        >>> checkpoint.path.name, checkpoint.is_qat
        ('float.ckpt', False)
        >>> net = nn.Sequential(nn.Linear(1, 1, bias=False))
        >>> checkpoint.load_float(net)
        >>> net[0].weight.item()
        1.0
    """

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | Path, weights_only: bool = True) -> Checkpoint:
        """Read a file, or the folder of a sharded checkpoint.

        Args:
            path: of it.
            weights_only: refuse files that hold more than plain data.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not a Lightning checkpoint, or holds more than plain data.
        """
        check_path("path", path, "checkpoints/last.ckpt")
        file = local_path(path)
        if file is not None and is_sharded_checkpoint(file):
            return cls(file, _read_folder(file, weights_only))
        if file is None or not file.is_file():
            kind = "local file" if file is None else "file"
            raise FileNotFoundError(f"there is no checkpoint {path}; give a {kind} that ModelCheckpoint has written.")
        path = file
        with file.open("rb") as opened:
            head = opened.read(2)
        if head not in (b"PK", b"\x80\x02"):
            raise ValueError(
                f"{path} cannot be read as a checkpoint: it was not written by torch.save, or it is damaged."
            )
        try:
            content = torch.load(path, map_location="cpu", weights_only=weights_only)
        except OSError as error:
            if error.errno != errno.EINVAL:  # torch.load seeks before the beginning of a file that was cut off
                raise
            raise ValueError(
                f"{path} cannot be read as a checkpoint: it is damaged, or was not copied whole."
            ) from error
        except Exception as error:  # readers of pickles and archives raise whatever foreign bytes lead them to
            if isinstance(error, pickle.UnpicklingError) and weights_only:
                raise ValueError(
                    f"{path} holds more than plain data, such as hyperparameters of a class of its own. If you trust "
                    "where it comes from: --weights_only false, or load_checkpoint(path, module, weights_only=False)."
                ) from error
            reason = one_line(error)
            raise ValueError(f"{path} cannot be read as a checkpoint ({type(error).__name__}: {reason}).") from error
        if not isinstance(content, dict) or "state_dict" not in content:
            raise ValueError(
                f"{path} is not a Lightning checkpoint: it has no 'state_dict'. Give a file of ModelCheckpoint."
            )
        whole = Field(content, str(path))
        check_state(whole["state_dict"])
        return cls(path, content)

    @property
    def is_qat(self) -> bool:
        """Whether it is one of a QAT run, rather than of the float model."""
        return KEY in self.content or any(f".{STATE}." in f".{name}" for name in self.content["state_dict"])

    @property
    def entry(self) -> CheckpointEntry:
        """What the QAT run has written into it.

        Raises:
            ValueError: if it is one of a float run, of another version of lq, or from before QAT started, or holds
                weights alone.
        """
        if not self.is_qat:
            raise ValueError(
                f"{self.path} is a checkpoint of a float model: QATCallback has added nothing to it. Load it into the "
                "float module, module.load_state_dict(torch.load(path)['state_dict']), and train or calibrate that."
            )
        if KEY not in self.content:
            raise ValueError(
                f"{self.path} holds the weights of a QAT run alone, as ModelCheckpoint(save_weights_only=True) writes "
                "them, without the settings that they belong to. Take a checkpoint that holds both, or prepare the "
                "module as in the run, lq.prepare(module.model, qconfig, example_args=...), and load them: "
                "module.load_state_dict(torch.load(path)['state_dict'])."
            )
        entry = CheckpointEntry.from_dict(self.content[KEY], f"{self.path}: {KEY}")
        if not entry.started:
            raise ValueError(
                f"{self.path} was written before QAT started (step {self.content.get('global_step', '?')}), so it has "
                "no ranges. Choose a later checkpoint of that run, or resume it: trainer.fit(module, ckpt_path=path)."
            )
        return entry

    def load_qat(self, module: Module) -> Module:
        """Prepare a float module as it was in the QAT run, and give it the weights; see :func:`load_checkpoint`."""
        entry, state = self.entry, part_of_state(self.content["state_dict"])
        if is_lightning_module(module):
            _prepare_lightning_module(module, entry)
        else:
            _prepare(module, entry)
            state = part_of_state(state, entry.target)
        _check_fit(state, module, f"{self.path} does not fit {type(module).__name__}")
        try:
            module.load_state_dict(state, strict=_is_strict(module))
        except (RuntimeError, KeyError, TypeError) as error:  # a state of another size or kind
            raise ValueError(f"{self.path} does not fit {type(module).__name__}: {error}") from error
        return module.eval()

    def load_float(self, module: nn.Module) -> None:
        """Give a module the weights of a float run.

        Raises:
            ValueError: if it is one of a QAT run, or does not fit.
        """
        if self.is_qat:
            raise ValueError(f"{self.path} is a checkpoint of a QAT run; give one of the float model.")
        _check_fit(self.content["state_dict"], module, f"{self.path} does not fit {type(module).__name__}")
        try:
            module.load_state_dict(self.content["state_dict"], strict=_is_strict(module))
        except (RuntimeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} does not fit {type(module).__name__}: {error}") from error


def load_checkpoint(path: str | Path, module: Module, *, weights_only: bool = True) -> Module:
    """Load a Lightning checkpoint of a QAT run, without a Trainer and without the callback.

    Args:
        path: of the ``.ckpt`` file, or of the folder that ``ModelParallelStrategy`` has written.
        module: a new LightningModule of the class that was trained, or only the part that was quantized, in float. It
            is prepared as it was in the run. A prepared module only gets the weights.
        weights_only: refuse files that hold more than plain data; see :func:`torch.load`.

    Returns:
        ``module``, prepared, with the trained weights, in evaluation mode. :func:`lq.convert` takes it, or the target
        of a LightningModule.

    Raises:
        ValueError: if the file is not a QAT checkpoint, holds weights alone, was written by a newer lq or before QAT
            started, or is from another architecture.

    Example:
        >>> import tempfile
        >>> net = nn.Sequential(nn.Linear(4, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": net.state_dict()}, f"{folder}/float.ckpt")
        ...     load_checkpoint(f"{folder}/float.ckpt", net)
        Traceback (most recent call last):
        ...
        ValueError: .../float.ckpt is a checkpoint of a float model: ...
    """
    return Checkpoint.read(path, weights_only).load_qat(module)


def check_state(state: Field) -> None:
    """Refuse a state dict that is none, or whose ranges nobody can have observed.

    Args:
        state: of whatever origin, with the file that it comes from.

    Raises:
        ValueError: naming file and entry.

    Example:
        >>> ranges = {"qat_state.min_val": torch.ones(1), "qat_state.max_val": torch.zeros(1)}
        >>> check_state(Field(ranges, "a.ckpt: state_dict"))
        Traceback (most recent call last):
        ...
        ValueError: a.ckpt: state_dict.qat_state.min_val[0] is 1.0, above the upper end of its range, 0.0.
    """
    versions = versions_of(state.value)
    if versions is not None:
        for _, of_module in Field(versions, f"{state.where}: versions").items():
            of_module.mapping()
    for key, entry in state.items():
        if f"{STATE}." not in key:
            continue  # whatever the user's own modules have put there, such as a list of a metric
        if key.rpartition(".")[2] == "_extra_state":
            _check_flags(entry)
        elif not isinstance(entry.value, Tensor):
            raise entry.error("a tensor")
        if key.endswith(f"{STATE}.min_val"):
            _check_ranges(entry, state[key.removesuffix("min_val") + "max_val"])


def _check_flags(entry: Field) -> None:
    try:
        extra = Field(from_bytes(entry.value), entry.where)
    except ValueError as error:
        raise ValueError(f"{entry.where}: {error}") from error
    for name in ("fake_quant", "observer", "freeze_bn"):
        extra[name].flag()
    for name_of_slot in extra["names"].each():
        name_of_slot.text()


def _check_ranges(low: Field, high: Field) -> None:
    if not isinstance(high.value, Tensor):
        raise high.error("a tensor")
    if not (low.value.is_floating_point() and high.value.is_floating_point()):
        raise ValueError(f"{low.where} and its max_val must hold floating point numbers.")
    if low.value.dim() != 1 or low.value.shape != high.value.shape:
        shapes = f"{tuple(low.value.shape)} and {tuple(high.value.shape)}"
        raise ValueError(f"{low.where} and its max_val have the shapes {shapes}; they must be lists of one length.")
    ends = zip(low.value.tolist(), high.value.tolist(), strict=True)
    for index, (least, most) in enumerate(ends):
        never_ran = (least, most) == (math.inf, -math.inf)
        if not never_ran and not (math.isfinite(least) and math.isfinite(most)):
            raise ValueError(f"{low.where}[{index}] and its upper end are {least} and {most}; ranges are finite.")
        if not never_ran and least > most:
            raise ValueError(f"{low.where}[{index}] is {least}, above the upper end of its range, {most}.")


def _prepare_lightning_module(module: LightningModule, entry: CheckpointEntry) -> None:
    build_layers(module)
    _prepare(target_of(module, find_target(module, entry.target)), entry)


def _prepare(module: nn.Module, entry: CheckpointEntry) -> None:
    if is_prepared(module):
        entry.require_same_plan(entry.target, qconfig_of(module))
    else:
        entry.prepare(module, entry.target, entry.qconfig)


def _check_fit(state: Mapping[str, Any], module: nn.Module, complaint: str) -> None:
    """Say how the architectures differ, before torch says it key by key."""
    ours = module.state_dict()
    missing, extra = ours.keys() - state.keys(), state.keys() - ours.keys()
    if not _is_strict(module):  # without ranges there is nothing to quantize by
        missing, extra = {key for key in missing if f"{STATE}." in key}, set()
    shapes = [
        f"{key} {tuple(state[key].shape)} (here {tuple(value.shape)})"
        for key, value in ours.items()
        if _shape(value) is not None and _shape(state.get(key)) not in (None, _shape(value)) and f"{STATE}." not in key
    ]
    found = {
        what: some_of(sorted(keys))
        for what, keys in (("it lacks", missing), ("it has besides", extra), ("other shapes", shapes))
    }
    if any(found.values()):
        differences = "; ".join(f"{what} {names}" for what, names in found.items() if names)
        raise ValueError(f"{complaint}: {differences}. Build the module as it was trained.")


def _is_strict(module: nn.Module) -> bool:
    """A LightningModule may say that its checkpoints do not hold all of its keys."""
    return bool(getattr(module, "strict_loading", True))


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None
