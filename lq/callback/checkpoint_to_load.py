"""Which checkpoint a run is going to load, known before its weights have to fit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn

Known = Callable[[], Mapping[str, Any]]


def checkpoint_to_load(trainer: Trainer, who: str) -> Mapping[str, Any]:
    """The checkpoint that this run is going to load, empty if there is none.

    Lightning (2.4 to 2.6) shows it to callbacks when it has loaded the weights, and by then they must have fitted;
    until then its path is a variable of the method that runs everything.

    Args:
        trainer: in ``setup``.
        who: wants to know, for the warning where another Lightning keeps the path elsewhere.
    """
    frame = _running(trainer)
    if frame is None:
        rank_zero_warn(
            f"lq: {who} cannot tell which checkpoint this version of Lightning is going to load; it goes by the "
            "weights that the module has."
        )
        return {}
    path = frame.f_locals.get("ckpt_path")
    if not path:
        return {}
    trust = {"weights_only": frame.f_locals["weights_only"]} if "weights_only" in frame.f_locals else {}
    loaded: Mapping[str, Any] = trainer.strategy.load_checkpoint(path, **trust)
    return loaded


def names_files_of_others(trainer: Trainer) -> bool:
    """Whether this run was resumed from a checkpoint that its user does not trust to run code.

    What such a checkpoint names, above all its best checkpoint, has to be read as plain data too. Before Lightning 2.6
    nobody could say so, and every checkpoint was trusted.

    Args:
        trainer: in a hook.
    """
    frame = _running(trainer)
    if frame is None or "weights_only" not in frame.f_locals:
        return False
    return bool(frame.f_locals.get("ckpt_path")) and frame.f_locals["weights_only"] is not False


def _running(trainer: Trainer) -> FrameType | None:
    """The method of the trainer that runs everything."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and not (frame.f_code.co_name == "_run" and frame.f_locals.get("self") is trainer):
        frame = frame.f_back
    return frame
