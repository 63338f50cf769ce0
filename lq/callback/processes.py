"""One process works, the others wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch import distributed

_LONG = timedelta(days=30)


@contextmanager
def others_wait() -> Iterator[None]:
    """All processes leave this context together, however long one of them works in it.

    The barrier of a training's own process group gives up after minutes, which ends the processes that wait.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        yield
        return
    group: Any = distributed.new_group(backend="gloo", timeout=_LONG)
    try:
        yield
    finally:
        distributed.barrier(group=group)
        distributed.destroy_process_group(group)
