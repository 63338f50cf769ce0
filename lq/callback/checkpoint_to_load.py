"""Which checkpoint a run is going to load, known before its weights have to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from lq.callback.processes import splits_weights
from lq.checkpoints.sharded import read_meta
from lq.compat.lightning_private import settings_of_run
from lq.core.state import STATE
from lq.messages import some_of

Known = Callable[[], Mapping[str, Any]]


def checkpoint_to_load(trainer: Trainer, who: str) -> Mapping[str, Any]:
    """The checkpoint that this run is going to load, empty if there is none.

    Lightning (2.4 to 2.6) shows it to callbacks when it has loaded the weights, and by then they must have fitted;
    until then its path is a variable of the method that runs everything.

    Args:
        trainer: in ``setup``.
        who: wants to know, for the warning where another Lightning keeps the path elsewhere.

    Example:
        >>> import tempfile, torch
        >>> from lightning.pytorch import Callback
        >>> from torch.utils.data import DataLoader
        >>> from lq.lightning_module.quiet import quiet_trainer
        >>> from lq.models.image_classifier import ImageClassifier
        >>> class Show(Callback):
        ...     def setup(self, trainer, pl_module, stage):
        ...         print(checkpoint_to_load(trainer, "Show").get("global_step"))
        >>> module, data = ImageClassifier(nn.Linear(2, 2), num_classes=2), DataLoader([(torch.zeros(2), 0)] * 3)
        >>> trainer = quiet_trainer(module, max_epochs=1, callbacks=[Show()])
        >>> trainer.fit(module, data, data)
        None
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer.save_checkpoint(f"{folder}/float.ckpt")
        ...     _ = trainer.validate(module, data, f"{folder}/float.ckpt", verbose=False)
        3
    """
    settings = settings_of_run(trainer)
    if settings is None:
        rank_zero_warn(
            f"lq: {who} cannot tell which checkpoint this version of Lightning is going to load; it goes by the "
            "weights that the module has."
        )
        return {}
    path = settings.get("ckpt_path")
    if not path:
        return {}
    trust = {name: value for name, value in settings.items() if name == "weights_only"}
    if splits_weights(trainer.strategy):  # its strategy would load the weights into parameters that are not split yet
        return read_meta(path, trust.get("weights_only") is not False)
    loaded: Mapping[str, Any] = trainer.strategy.load_checkpoint(path, **trust)
    return loaded


def names_files_of_others(settings: Mapping[str, Any] | None) -> bool:
    """Whether a run was resumed from a checkpoint that its user does not trust to run code.

    What such a checkpoint names, above all its best checkpoint, has to be read as plain data too. Before Lightning 2.6
    nobody could say so, and every checkpoint was trusted.

    Args:
        settings: of the run, as :func:`lq.compat.lightning_private.settings_of_run` gives them.

    Example:
        >>> names_files_of_others({"ckpt_path": "a.ckpt", "weights_only": None})
        True
        >>> names_files_of_others({"ckpt_path": "a.ckpt", "weights_only": False})
        False
        >>> names_files_of_others({"ckpt_path": "a.ckpt"})  # Lightning before 2.6
        False
    """
    settings = settings or {}
    return "weights_only" in settings and bool(settings["ckpt_path"]) and settings["weights_only"] is not False


def require_qat_state(checkpoint: Mapping[str, Any], module: nn.Module) -> None:
    """Refuse a checkpoint without the ranges of QAT, which a module with ``strict_loading = False`` would not miss.

    Args:
        checkpoint: of a QAT run.
        module: the LightningModule, whose target is prepared.

    Raises:
        ValueError: naming what is missing.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> module = nn.ModuleDict({"model": prepare(nn.Sequential(nn.Linear(4, 2)))})
        >>> weights = {name: value for name, value in module.state_dict().items() if "qat_state" not in name}
        >>> require_qat_state({"state_dict": weights}, module)
        Traceback (most recent call last):
        ...
        ValueError: The checkpoint lacks model.qat_state.min_val, ...: the ranges of QAT, without which nothing can ...
    """
    wanted = [name for name in module.state_dict() if f".{STATE}." in f".{name}"]
    missing = [name for name in wanted if name not in checkpoint["state_dict"]]
    if missing:
        raise ValueError(
            f"The checkpoint lacks {some_of(missing, 3)}: the ranges of QAT, without which nothing can be exported. "
            "Take one that holds all that was trained, or start from the float checkpoint."
        )
