"""A QConfig from what a user may give in its place: a preset's name, a file, a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from lq.checks import as_dataclass, shown
from lq.config.presets import PRESETS
from lq.config.qconfig import QConfig
from lq.messages import one_line


def as_qconfig(value: QConfig | str | Mapping[str, Any]) -> QConfig:
    """A preset's name, a YAML file of the fields, a :class:`QConfig` or a mapping, as a :class:`QConfig`.

    Example:
        >>> as_qconfig({"preset": "x86_vnni", "exclude": ["fc"]}).exclude
        ('fc',)

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is something else, or the file holds something else.
    """
    if isinstance(value, QConfig):
        return value
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        return as_dataclass(QConfig, _read(value), value)
    if isinstance(value, str):
        return QConfig(preset=value)
    if isinstance(value, Mapping):
        return as_dataclass(QConfig, value, "qconfig")
    raise ValueError(f"qconfig must be a preset's name or a QConfig, got {_described(value)}")


def _described(value: object) -> str:
    kind = type(value)
    if kind.__module__.startswith(("torch.ao.", "torchao.")):
        return (
            f"torch.ao's {kind.__name__}. Write lq.QConfig(weight=lq.WeightSpec(...), "
            "activation=lq.ActivationSpec(...), exclude=[...], overrides={...})."
        )
    hint = " Inputs of a call are example_args=(x,)." if isinstance(value, (Tensor, tuple)) else ""
    return f"{kind.__name__}: {shown(value)}.{hint}"


def _read(file: str) -> Any:
    """The settings in a YAML file; nothing in it is executed."""
    if not Path(file).is_file():
        raise FileNotFoundError(
            f"qconfig={file!r}: there is no such file. Give the YAML file that `lq bits` wrote, or one of the presets "
            f"{', '.join(PRESETS)}."
        )
    try:
        return yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of text, numbers and nesting without end
        raise ValueError(f"{file} is no YAML file of plain settings: {one_line(error, None)}") from error
