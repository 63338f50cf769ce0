"""Starting weights: torchvision's by name, or a checkpoint of an earlier run."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PREFIX = "model."
_QAT = ".qat_state."  # in the names of what QAT adds to a state dict


def build_torchvision(name: str, num_classes: int, weights: str | None, model_args: Mapping[str, Any]) -> nn.Module:
    """Build a torchvision classifier by name.

    Args:
        name: as in `torchvision.models.list_models()`.
        num_classes: outputs of a network built without weights; with weights it keeps theirs.
        weights: name of torchvision weights, such as "DEFAULT"; None for random ones.
        model_args: further arguments of the builder, such as `width_mult`.

    Returns:
        The network.

    Raises:
        ValueError: unknown name, weights or argument.

    Example:
        >>> build_torchvision("mobilenet_v2", 10, None, {"width_mult": 0.5}).classifier[1].out_features
        10
    """
    try:
        from torchvision import models
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Classifier needs torchvision: pip install 'lightning-qat[vision]'") from error
    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see torchvision.models.list_models()."
        raise ValueError(f"model {name!r} is not a torchvision classifier; {hint}")
    builder = models.get_model_builder(name)
    if weights is None:
        options: dict[str, Any] = {"num_classes": num_classes, **_quiet(builder, model_args)}
    else:
        allowed = [member.name for member in models.get_model_weights(name)] + ["DEFAULT"]
        if weights not in allowed:
            raise ValueError(
                f"weights {weights!r} is neither a file nor weights of {name}; write one of "
                f"{', '.join(allowed)}, or train the file first (the float recipe beside this one)."
            )
        options = {"weights": weights, **model_args}
    try:
        network: nn.Module = builder(**options)
    except TypeError as error:
        raise ValueError(f"model_args {dict(model_args)!r} do not fit {name}: {error}") from error
    return network


def _quiet(builder: Any, model_args: Mapping[str, Any]) -> dict[str, Any]:
    # GoogLeNet and Inception warn when this is left to their default.
    if builder.__name__ in ("googlenet", "inception_v3") and "init_weights" not in model_args:
        return {"init_weights": True, **model_args}
    return dict(model_args)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the network's tensors from a Lightning checkpoint or from a plain state dict.

    Args:
        path: the file; it is read with `weights_only=True`, so it cannot run code.

    Returns:
        Tensors by their names inside the network, that is without the leading "model.".

    Raises:
        ValueError: the file holds something else, or is of a QAT run.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "last.ckpt"
        ...     torch.save({"state_dict": {"model.weight": torch.ones(2)}}, file)
        ...     read_weights(file)
        {'weight': tensor([1., 1.])}
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted unpickler raises whatever foreign bytes lead it to
        raise ValueError(f"weights {str(path)!r} is not a checkpoint that torch.load can read: {error}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    state = state if isinstance(state, Mapping) else {}
    if any(_QAT in f".{key}" for key in state):
        raise ValueError(f"weights {str(path)!r} is a checkpoint of a QAT run; give one of the float model.")
    inner = {key.removeprefix(PREFIX): value for key, value in state.items() if str(key).startswith(PREFIX)}
    found = inner or dict(state)
    if not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"weights {str(path)!r} holds no state dict; save one with torch.save(model.state_dict()).")
    return found


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint into a network and refuse any that does not fit exactly.

    Args:
        model: the network, changed in place.
        path: Lightning checkpoint or state dict.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "last.ckpt"
        ...     torch.save(nn.Linear(2, 1).state_dict(), file)
        ...     load_weights(nn.Linear(2, 1), file)
    """
    try:
        model.load_state_dict(read_weights(path))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise ValueError(
            f"weights {str(path)!r} do not fit this {type(model).__name__}: {' '.join(lines)} "
            "Use the model, num_classes, in_channels and model_args that the file was trained with."
        ) from error
