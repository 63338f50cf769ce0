"""Which modules a pattern of the settings means."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

Named = tuple[str, nn.Module | None]


def matches(pattern: str, name: str, module: nn.Module | None) -> bool:
    """Whether a glob or ``type:ClassName`` pattern matches a module.

    Example:
        >>> matches("layer1.*", "layer1.0.conv1", None), matches("type:Linear", "fc", nn.Linear(2, 2))
        (True, True)
    """
    if pattern.startswith("type:"):
        wanted = pattern.removeprefix("type:")
        return module is not None and any(cls.__name__ == wanted for cls in type(module).__mro__)
    return fnmatchcase(name, pattern)
