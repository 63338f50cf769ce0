"""The call that a model is exported for, of those that a training makes of it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lq.compat.torchvision_private import is_detector
from lq.core.kept import as_it_was
from lq.tracing.closeness import are_close
from lq.tracing.images import check_one_size, image_list, images_of, is_of_each_image, with_images
from lq.tracing.structure import Inputs, tensors_of


def call_to_export(module: nn.Module, inputs: Inputs) -> Inputs:
    """A call with what a deployed model is called with.

    Of a detector, which takes images and has a dict for each, that is a list of one, as a graph would hold the
    choice of boxes once for each; and no optional tensors that change nothing in evaluation, such as targets. Other
    calls stay as they are: a mask of ones changes nothing either, and is read all the same.

    Args:
        module: is left as it is.
        inputs: of one call.

    Example:
        >>> class Finds(nn.Module):
        ...     def forward(self, images, targets=None):
        ...         return [{"boxes": image.mean().expand(1, 4)} for image in images]
        >>> images = [torch.zeros(3, 8, 8), torch.ones(3, 8, 8)]
        >>> (given,), _ = call_to_export(Finds(), ((images, [torch.zeros(2, 4)] * 2), {}))
        >>> len(given)
        1
    """
    names = _unread_by_detector(module, inputs)
    if names is None:
        return inputs
    fewer = _without(_parameters(module), inputs, names)
    images = images_of(fewer)
    assert images is not None
    check_one_size(images, type(module).__name__)
    return with_images(fewer, images[:1])


class ReadArguments:
    """Calls of a detector without what it does not read in evaluation, such as targets; the first call decides.

    An exported model takes them so: see :func:`call_to_export`. Calls of other modules stay as they are.

    Args:
        module: what is called.

    Example:
        >>> class Finds(nn.Module):
        ...     def forward(self, images, targets=None):
        ...         return [{"boxes": image.mean().expand(1, 4)} for image in images]
        >>> of_call = ReadArguments(Finds())
        >>> args, kwargs = of_call(([torch.zeros(3, 8, 8)], [torch.zeros(2, 4)]), {})
        >>> len(args)
        1
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._order = _parameters(module)  # of now: while another version answers, forward is that one's
        self._unread: list[str] | None = None

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """The same call, without these."""
        if self._unread is None:
            self._unread = _unread_by_detector(self.module, (args, kwargs)) or []
        return _without(self._order, (args, kwargs), self._unread)


def _unread_by_detector(module: nn.Module, inputs: Inputs) -> list[str] | None:
    """Names of the arguments that change nothing; ``None`` if this is no call of a detector."""
    if not _may_be_of_images(module, inputs):
        return None
    names = _unread(module, inputs)
    fewer = _without(_parameters(module), inputs, names)
    images = images_of(fewer)
    if images is None or not is_of_each_image(_output(module, with_images(fewer, images[:2])), images[:2]):
        return None
    return names


def _may_be_of_images(module: nn.Module, inputs: Inputs) -> bool:
    """Whether there is a list of images, or a detector of torchvision gets a tensor of them."""
    args, kwargs = inputs
    values = (*args, *kwargs.values())
    if any(image_list(((value,), {})) is not None for value in values):
        return True
    return is_detector(module) and any(isinstance(value, Tensor) and value.dim() == 4 for value in values)


def without_unread(module: nn.Module, inputs: Inputs) -> Inputs:
    """A call without the optional tensors that change nothing of what the module returns in evaluation.

    Args:
        module: is left as it is.
        inputs: of one call.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, x, targets=None):
        ...         return (x - targets).square() if self.training else x
        >>> without_unread(Net(), ((torch.ones(1), torch.zeros(1)), {}))
        ((tensor([1.]),), {})
    """
    return _without(_parameters(module), inputs, _unread(module, inputs))


def _unread(module: nn.Module, inputs: Inputs) -> list[str]:
    args, kwargs = inputs
    parameters = inspect.signature(module.forward).parameters
    optional = [name for name, parameter in parameters.items() if parameter.default is None]
    named = dict(zip(parameters, args, strict=False)) | kwargs
    given = [name for name in optional if name in named and tensors_of(named[name])]
    if not given or any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        return []
    expected, found = _output(module, inputs), list[str]()
    for name in reversed(given):
        got = _output(module, _without(_parameters(module), inputs, [*found, name]))
        if tensors_of(got) and are_close(expected, got):
            found.append(name)
    return found


def _parameters(module: nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)


def _without(order: Sequence[str], inputs: Inputs, names: Sequence[str]) -> Inputs:
    args, kwargs = inputs
    for name in names:
        position = order.index(name)
        if name in kwargs:
            kwargs = {key: value for key, value in kwargs.items() if key != name}
        elif position == len(args) - 1:
            args = args[:position]
        elif position < len(args):
            args = (*args[:position], None, *args[position + 1 :])
    return args, kwargs


def _output(module: nn.Module, inputs: Inputs) -> Any:
    with as_it_was(module), torch.no_grad():
        args, kwargs = copy.deepcopy(inputs)
        try:
            return module.eval()(*args, **kwargs)
        except Exception:  # it needs the argument; what else is wrong shows where the whole call is made
            return None
