"""Hyperparameters that a checkpoint holds, as settings of the module that the configuration names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

# What LightningCLI saves beside those of the module's own.
_CLASS, _INSTANTIATOR = "_class_path", "_instantiator"


def hyperparameters_of(path: str | Path) -> dict[str, Any]:
    """What ``save_hyperparameters`` has put into a checkpoint.

    Args:
        path: of the file.

    Returns:
        hyperparameters by name; none if there is no such file, or it holds more than plain data: whoever loads it says
        so.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "float.ckpt"
        >>> torch.save({"state_dict": {}, "hyper_parameters": {"lr": 0.1}}, path)
        >>> hyperparameters_of(path), hyperparameters_of("no such file")
        ({'lr': 0.1}, {})
    """
    if not Path(path).is_file():
        return {}
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")["hyper_parameters"]
    except Exception:  # foreign bytes lead readers of pickles and archives to raise whatever they like
        return {}
    names = found.keys() - {_INSTANTIATOR} if isinstance(found, Mapping) else ()
    return {str(name): found[name] for name in found if name in names}


def model_settings(model: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The setting ``model`` of a configuration, with the hyperparameters of a checkpoint.

    Those that LightningCLI has saved name their class. Those that a script has saved are arguments of the class that
    the configuration names, and what is none of its arguments does not count.

    Args:
        model: the setting: ``class_path`` and ``init_args``.
        given: hyperparameters of the checkpoint.

    Returns:
        the new setting, or ``None`` if it is what it was.

    Example:
        >>> net = {"class_path": "mine.Net", "init_args": {"lr": 0.5, "width": 8}}
        >>> model_settings(net, {"lr": 0.1, "note": "not an argument"})
        {'class_path': 'mine.Net', 'init_args': {'lr': 0.1, 'width': 8}}
        >>> model_settings(net, {"_class_path": "other.Net", "depth": 3})
        {'class_path': 'other.Net', 'dict_kwargs': {'depth': 3}}
    """
    if _CLASS in given:
        settings = {name: value for name, value in given.items() if name != _CLASS}
        return {"class_path": given[_CLASS], "dict_kwargs": settings}
    own = dict(model.get("init_args") or {})
    known = {name: given[name] for name in own if name in given}
    changed = {name: value for name, value in known.items() if not _same(own[name], value)}
    return {"class_path": model["class_path"], "init_args": {**own, **changed}} if changed else None


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except (RuntimeError, ValueError, TypeError):  # tensors and arrays
        return False
