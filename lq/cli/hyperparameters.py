"""Hyperparameters that a checkpoint holds, as settings of the module that the configuration names."""

from __future__ import annotations

import inspect
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.data import AttributeDict

# Where Lightning keeps those of the module and of the datamodule in a checkpoint.
SAVED_AS = {"model": "hyper_parameters", "data": "datamodule_hyper_parameters"}

# What LightningCLI saves beside those of the module's own.
_CLASS, _INSTANTIATOR = "_class_path", "_instantiator"


def hyperparameters_of(path: str | Path, weights_only: bool = True, key: str = "model") -> dict[str, Any]:
    """What ``save_hyperparameters`` has put into a checkpoint.

    Args:
        path: of the file.
        weights_only: ``False`` reads those that are more than plain data, too.
        key: whose, of :data:`SAVED_AS`.

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
        checkpoint = torch.load(path, weights_only=weights_only, map_location="cpu")
        found = checkpoint[SAVED_AS[key]]
    except Exception:  # foreign bytes lead readers of pickles and archives to raise whatever they like
        return {}
    found = vars(found) if isinstance(found, Namespace) else found
    if not isinstance(found, Mapping):
        return {}
    plain = {str(name): value for name, value in found.items() if name != _INSTANTIATOR}
    whole = checkpoint.get("hparams_name" if key == "model" else "datamodule_hparams_name")
    if isinstance(whole, str) and whole != "kwargs":  # save_hyperparameters(config): one argument that holds them all
        return {whole: AttributeDict(plain)}  # as Lightning gives it to the module, for config.lr and config["lr"]
    return plain


def model_settings(model: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The setting ``model`` of a configuration, with the hyperparameters of a checkpoint.

    Those that LightningCLI has saved may name more than the arguments of ``__init__``. Those that a script has saved
    are arguments of the class that the configuration names, and what is none of its arguments does not count. The class
    is always that of the configuration: what a file names is not imported.

    Args:
        model: the setting: ``class_path`` and ``init_args``.
        given: hyperparameters of the checkpoint.

    Returns:
        the new setting, or ``None`` if it is what it was.

    Example:
        >>> net = {"class_path": "mine.Net", "init_args": {"lr": 0.5, "width": 8}}
        >>> model_settings(net, {"lr": 0.1, "note": "not an argument"})
        {'class_path': 'mine.Net', 'init_args': {'lr': 0.1, 'width': 8}}
        >>> model_settings(net, {"_class_path": "mine.Net", "depth": 3})
        {'class_path': 'mine.Net', 'dict_kwargs': {'depth': 3}}
    """
    if given.get(_CLASS) == model["class_path"]:
        settings = {name: value for name, value in given.items() if name != _CLASS}
        return {"class_path": model["class_path"], "dict_kwargs": settings}
    own = dict(model.get("init_args") or {})
    known = {name: given[name] for name in own if name in given}
    changed = {name: value for name, value in known.items() if not _same(own[name], value)}
    return {"class_path": model["class_path"], "init_args": {**own, **changed}} if changed else None


def argument_names(kind: type, demanded: bool = False) -> list[str]:
    """The arguments of a class; those of its base classes, too, if its ``**kwargs`` go there.

    Args:
        kind: the class.
        demanded: only those without a default.

    Example:
        >>> argument_names(torch.nn.ReLU), argument_names(torch.nn.Linear, demanded=True)
        (['inplace'], ['in_features', 'out_features'])
    """
    found = []
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        found += [p.name for p in named if not demanded or p.default is p.empty]
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return found


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except (RuntimeError, ValueError, TypeError):  # tensors and arrays
        return False
