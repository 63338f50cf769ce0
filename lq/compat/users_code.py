"""Which lines of a traceback are the user's."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path


def is_users_code(filename: str) -> bool:
    """Whether a file of a traceback is the user's: not of torch or lq, nor a graph that they have generated.

    Example:
        >>> is_users_code("/home/me/lq/train.py"), is_users_code(__file__), is_users_code("<eval_with_key>.1")
        (True, False, False)
    """
    return not filename.startswith((*_places_of_ours(), "<eval_with_key>", "<frozen "))


@cache
def _places_of_ours() -> tuple[str, ...]:
    specs = [find_spec(name) for name in ("lq", "torch")]
    return tuple(str(Path(spec.origin).parent) + os.sep for spec in specs if spec is not None and spec.origin)
