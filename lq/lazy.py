"""Names of a package that import their modules when they are first asked for (PEP 562)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package.

    Args:
        package: its dotted name, for the error message.
        homes: public name -> dotted name of the module that defines it.

    Example:
        >>> get = lazy_names("shapes", {"sqrt": "math"})
        >>> get("sqrt")(9.0)
        3.0
        >>> get("cube")
        Traceback (most recent call last):
            ...
        AttributeError: module 'shapes' has no attribute 'cube'; public names: ['sqrt']
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; public names: {sorted(homes)}")
        return getattr(importlib.import_module(homes[name]), name)

    return get
