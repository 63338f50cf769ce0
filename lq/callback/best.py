"""Which weights of a run are deployed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lq.callback.checkpoint_to_load import names_files_of_others
from lq.checkpoints.checkpoint import check_state
from lq.checkpoints.sharded import is_sharded_checkpoint, read_state
from lq.compat.lightning_private import settings_of_run
from lq.compat.packages import is_a
from lq.core.checkpoint import from_bytes, part_of_state
from lq.fields import Field
from lq.messages import one_line

LAST = "the last step"

Kept = frozenset[tuple[str, float]]


def kept_so_far(trainer: Trainer) -> Kept:
    """The checkpoints that ModelCheckpoints of a Trainer hold, with their scores.

    Example:
        >>> keeper = ModelCheckpoint(monitor="val_loss")
        >>> keeper.best_k_models = {"epoch=3.ckpt": torch.tensor(0.25)}
        >>> kept_so_far(Trainer(accelerator="cpu", logger=False, callbacks=[keeper, ModelCheckpoint()]))
        frozenset({('epoch=3.ckpt', 0.25)})
    """
    return frozenset((path, float(score)) for c in _monitoring(trainer) for path, score in c.best_k_models.items())


def load_best(trainer: Trainer, module: LightningModule, name: str, of_others: Kept = frozenset()) -> str:
    """Load the best quantization-aware weights that a monitoring ModelCheckpoint kept into ``module``.

    Args:
        trainer: of the run that ended.
        module: a copy of the trained module, holding the last weights.
        name: of its target.
        of_others: what was kept of other modules, by a ModelCheckpoint that serves several fits.

    Returns:
        Where the weights are from: a checkpoint's path, or "the last step" if there is no such checkpoint.

    Example:
        >>> import tempfile
        >>> from lq.backends.prepare import prepare, set_phase
        >>> module, keeper = LightningModule(), ModelCheckpoint(monitor="val_loss")
        >>> module.model = prepare(torch.nn.Sequential(torch.nn.Linear(4, 2)))
        >>> set_phase(module.model, fake_quant=True, observer=False, freeze_bn=True)
        >>> trainer = Trainer(accelerator="cpu", logger=False, callbacks=[keeper])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": module.state_dict()}, f"{folder}/best.ckpt")
        ...     keeper.best_k_models = {f"{folder}/best.ckpt": torch.tensor(0.25)}
        ...     load_best(trainer, module, "model").removeprefix(folder)
        '/best.ckpt'
        >>> load_best(trainer, module, "model")
        'the last step'
    """
    key = f"{name}.qat_state._extra_state" if name else "qat_state._extra_state"
    only_plain = names_files_of_others(settings_of_run(trainer))
    early: list[str] = []
    foreign = {path for path, _ in of_others & kept_so_far(trainer)}
    for path in _best_first(trainer):
        try:
            saved = _state_of(path, only_plain)
            if not from_bytes(saved.get(key, {})).get("fake_quant", False):
                early.append(path)
                continue
            if path in foreign:
                raise ValueError(
                    f"{path}, which ModelCheckpoint still holds, is of a module that was fitted before. Give each "
                    "module a ModelCheckpoint of its own."
                )
            _load(module, saved, path)
            return path
        except ValueError as error:
            rank_zero_warn(f"lq: {error} lq takes the next best weights, or the last ones if there are no others.")
    if early:
        rank_zero_info(
            f"lq: the best checkpoint, {early[0]}, is from before QAT started, so the last weights are converted. "
            "To get the best of the QAT epochs, keep more checkpoints: ModelCheckpoint(save_top_k=-1, ...)."
        )
    return LAST


def _state_of(path: str, only_plain: bool) -> dict[str, Any]:
    """The state dict of a checkpoint.

    What this very run wrote may hold whatever the user's hyperparameters are; what an untrusted checkpoint names, not.

    Raises:
        ValueError: if it cannot be read.
    """
    if is_sharded_checkpoint(path):
        return _state_of_folder(path, only_plain)
    try:
        with get_filesystem(path).open(path, "rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # readers of pickles and archives raise whatever foreign bytes lead them to
        if only_plain:
            raise ValueError(
                f"{path}, which the checkpoint that this run was resumed from names as its best, cannot be read as "
                f"plain data ({type(error).__name__}). If you trust both: trainer.fit(..., weights_only=False)."
            ) from error
        content = _with_code(path)
    state = Field(content, path)["state_dict"]
    check_state(state)
    return part_of_state(state.value)


def _state_of_folder(path: str, only_plain: bool) -> dict[str, Any]:
    if only_plain:
        raise ValueError(
            f"{path}, which the checkpoint that this run was resumed from names as its best, is a folder of pickles. "
            "If you trust both: trainer.fit(..., weights_only=False)."
        )
    state = read_state(path)
    check_state(Field(state, path))
    return part_of_state(state)


def _with_code(path: str) -> Any:
    try:
        with get_filesystem(path).open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=False)
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {one_line(error)}).") from error


def _load(module: LightningModule, saved: dict[str, Any], path: str) -> None:
    """Load all or nothing.

    Raises:
        ValueError: if it does not fit.
    """
    before = copy.deepcopy(part_of_state(module.state_dict()))
    try:
        module.load_state_dict(saved, strict=module.strict_loading)
    except (RuntimeError, KeyError, TypeError) as error:
        module.load_state_dict(before, strict=False)
        reason = one_line(error, None)
        raise ValueError(f"{path} does not fit this model: {reason}.") from error


def _best_first(trainer: Trainer) -> Iterator[str]:
    """Paths or URLs of what the first ModelCheckpoint with a monitor has kept."""
    checkpoints = _monitoring(trainer)
    if not checkpoints:
        return
    kept = checkpoints[0].best_k_models
    ranked = sorted(kept, key=lambda path: float(kept[path]), reverse=checkpoints[0].mode == "max")
    best = checkpoints[0].best_model_path
    yield from (path for path in dict.fromkeys([best, *ranked]) if path and _exists(path))


def _monitoring(trainer: Trainer) -> list[Any]:
    found: list[Any] = [c for c in trainer.checkpoint_callbacks if is_a(c, ModelCheckpoint)]
    return [c for c in found if c.monitor]


def _exists(path: str) -> bool:
    return is_sharded_checkpoint(path) or bool(get_filesystem(path).isfile(path))
