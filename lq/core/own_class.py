"""The class that the user gave a module, whatever it has become."""

from __future__ import annotations

from torch import nn

USERS_CLASS = "_lq_class"


class Converted(nn.Module):
    """Marks a module that computes with integers, so that nobody prepares it again.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> prepare(Converted())
        Traceback (most recent call last):
            ...
        ValueError: Converted is an int8 model, from lq.convert. Give the float model that it was made from.
    """


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, of an instrumented one that which it had before.

    Example:
        >>> own_class(nn.ReLU()).__name__
        'ReLU'
    """
    found: type[nn.Module] = getattr(type(module), USERS_CLASS, type(module))
    return found


def is_plain_leaf(module: nn.Module) -> bool:
    """Whether a module is one of torch's without modules inside.

    Example:
        >>> is_plain_leaf(nn.ReLU()), is_plain_leaf(nn.Sequential(nn.ReLU()))
        (True, False)
    """
    return own_class(module).__module__.startswith("torch.nn.") and next(module.children(), None) is None
