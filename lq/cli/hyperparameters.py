"""Hyperparameters that a checkpoint holds, as settings of the module that the configuration names."""

from __future__ import annotations

import dataclasses
import inspect
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.data import AttributeDict

from lq.checkpoints.sharded import is_sharded_checkpoint, read_meta
from lq.export.artifact.remote import local_path

# Where Lightning keeps those of the module and of the datamodule in a checkpoint.
SAVED_AS = {"model": "hyper_parameters", "data": "datamodule_hyper_parameters"}

# What LightningCLI saves beside those of the module's own.
_CLASS, _INSTANTIATOR = "_class_path", "_instantiator"


def hyperparameters_of(path: str | Path, weights_only: bool = True, key: str = "model") -> dict[str, Any]:
    """What ``save_hyperparameters`` has put into a checkpoint.

    Args:
        path: of the file, or of the folder of a sharded one.
        weights_only: ``False`` reads those that are more than plain data, too.
        key: whose, of :data:`SAVED_AS`.

    Returns:
        hyperparameters by name; none if there is no such file, or it holds more than plain data: whoever loads it says
        so.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "float.ckpt")
        ...     torch.save({"state_dict": {}, "hyper_parameters": {"lr": 0.1}}, path)
        ...     print((hyperparameters_of(path), hyperparameters_of("no such file")))
        ({'lr': 0.1}, {})
    """
    place = local_path(path)
    if place is None or not (place.is_file() or is_sharded_checkpoint(place)):
        return {}
    try:
        checkpoint = read_meta(place, weights_only)
        found = checkpoint[SAVED_AS[key]]
    except Exception:  # foreign bytes lead readers of pickles and archives to raise whatever they like
        return {}
    found = vars(found) if isinstance(found, Namespace) else found
    if not isinstance(found, Mapping):
        return {}
    plain = {str(name): _as_mapping(value) for name, value in found.items() if name != _INSTANTIATOR}
    whole = checkpoint.get("hparams_name" if key == "model" else "datamodule_hparams_name")
    if isinstance(whole, str) and whole != "kwargs":  # save_hyperparameters(config): one argument that holds them all
        return {whole: plain}
    return plain


def _as_mapping(value: Any) -> Any:
    """As a configuration would have it, from which the parser makes the object again that the class asks for."""
    if isinstance(value, Namespace):
        return vars(value)
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


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
    changed = {name: value for name, value in known.items() if not same(own[name], value)}
    return {"class_path": model["class_path"], "init_args": {**own, **changed}} if changed else None


def argument_names(kind: type, demanded: bool = False) -> list[str]:
    """The arguments of a class; those of its base classes, too, if its ``**kwargs`` go there.

    Args:
        kind: the class.
        demanded: only those without a default.

    Example:
        >>> import torch
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


def with_attributes(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a module, mappings as ``load_from_checkpoint`` gives them: for ``config.lr``, too.

    Args:
        kind: the module's class; what its annotations name is not changed.
        given: arguments by name.

    Example:
        >>> class Net:
        ...     def __init__(self, config): ...
        >>> with_attributes(Net, {"config": {"lr": 0.1}})["config"].lr
        0.1
    """
    parameters = inspect.signature(kind).parameters
    free = {name for name, p in parameters.items() if p.annotation in (p.empty, Any, Namespace)}
    return {name: AttributeDict(v) if type(v) is dict and name in free else v for name, v in given.items()}


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal; tensors and the like, which do not say so in a word, are not.

    Example:
        >>> import torch
        >>> same({"lr": 0.1}, AttributeDict(lr=0.1)), same(torch.ones(2), torch.ones(2))
        (True, False)
    """
    try:
        return bool(a == b)
    except (RuntimeError, ValueError, TypeError):  # tensors and arrays
        return False
