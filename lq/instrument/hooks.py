"""Forward hooks that came after the plan: what they call is not the module's.

A hook runs between the ``forward`` of its module and that of the module around it, among whose calls its own would
count. Hooks that were there when the plan was made are part of it, as they may change what the module computes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import CodeType, FrameType
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from lq.compat.torch_private import GLOBAL_FORWARD_HOOKS, GLOBAL_PRE_HOOKS

Codes = frozenset[CodeType]
NONE: Codes = frozenset()


def hooks_so_far() -> int:
    """The number that the next hook will have; those of all hooks rise.

    Example:
        >>> before, module = hooks_so_far(), nn.ReLU()
        >>> handle = module.register_forward_hook(lambda *_: None)
        >>> handle.id == before, hooks_so_far() == before + 1
        (True, True)
    """
    return int(RemovableHandle.next_id)


def first_unknown(module: nn.Module) -> int:
    """A number above those of all hooks that a module has.

    Example:
        >>> module = nn.ReLU()
        >>> module._forward_hooks[10**9] = print  # as of a module that another process has pickled
        >>> first_unknown(module), first_unknown(nn.ReLU()) == hooks_so_far()
        (1000000001, True)
    """
    keys = [key for hooks in _hooks_of(module) for key in hooks]
    return max([hooks_so_far(), *(key + 1 for key in keys)])


def later_hooks(module: nn.Module, since: int) -> Codes:
    """What the forward hooks run that a module and its parts have got since then.

    Args:
        module: the module.
        since: from :func:`hooks_so_far`.

    Example:
        >>> module, since = nn.Sequential(nn.ReLU()), hooks_so_far()
        >>> def look(module, args, out): ...
        >>> handle = module[0].register_forward_hook(look)
        >>> later_hooks(module, since) == {look.__code__}, later_hooks(module, hooks_so_far())
        (True, frozenset())
    """
    found = [_code_of(hook) for hooks in _hooks_of(module) for key, hook in hooks.items() if key >= since]
    return frozenset(code for code in found if code is not None)


@contextmanager
def without_later_hooks(module: nn.Module, since: int) -> Iterator[None]:
    """Within the block a module has only the forward hooks that it had then.

    Args:
        module: the module.
        since: from :func:`hooks_so_far`.

    Example:
        >>> module, since = nn.ReLU(), hooks_so_far()
        >>> handle = module.register_forward_hook(print)
        >>> with without_later_hooks(module, since):
        ...     len(module._forward_hooks)
        0
        >>> len(module._forward_hooks)
        1
    """
    before = [(hooks, dict(hooks)) for hooks in _hooks_of(module) if hooks]
    for hooks, known in before:
        for key in known:
            if key >= since:
                del hooks[key]
    try:
        yield
    finally:
        for hooks, known in before:  # handles know these very dictionaries
            hooks.clear()
            hooks.update(known)


def is_called_by(codes: Codes, within: CodeType) -> bool:
    """Whether one of these functions makes the present call.

    Args:
        codes: of the functions.
        within: of the function in which the search ends.

    Example:
        >>> def hook():
        ...     return is_called_by(frozenset({hook.__code__}), module.__code__)
        >>> def module():
        ...     return hook(), is_called_by(frozenset({hook.__code__}), module.__code__)
        >>> module()
        (True, False)
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not within:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False


def _hooks_of(module: nn.Module) -> list[dict[int, Any]]:
    """Those of a module and its parts, and those of all modules."""
    own = [hooks for part in module.modules() for hooks in (part._forward_hooks, part._forward_pre_hooks)]
    return [GLOBAL_FORWARD_HOOKS, GLOBAL_PRE_HOOKS, *own]


def _code_of(hook: Any) -> CodeType | None:
    while isinstance(hook, partial):
        hook = hook.func
    for function in (hook, getattr(type(hook), "__call__", None)):  # noqa: B004 - the code of a class's own method
        code = getattr(getattr(function, "__func__", function), "__code__", None)
        if isinstance(code, CodeType):
            return code
    return None
