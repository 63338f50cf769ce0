"""A batch that is a list of images, as detectors take it: they may differ in size. A tensor of images will do, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lq.tracing.structure import Inputs, tensors_of


def image_list(inputs: Inputs) -> Sequence[Tensor] | None:
    """The images of a call whose only argument with tensors is a list or tuple of images.

    Args:
        inputs: positional and keyword arguments.

    Returns:
        these, of shape (channels, height, width); ``None`` for any other call.

    Example:
        >>> import torch
        >>> len(image_list((([torch.zeros(3, 8, 8), torch.zeros(3, 9, 8)],), {})))
        2
        >>> image_list(((torch.zeros(2, 3, 8, 8),), {}))
    """
    held = _only_argument(inputs)
    if type(held) not in (list, tuple):
        return None
    images: Sequence[Tensor] = held
    return images if all(isinstance(image, Tensor) and image.dim() == 3 for image in images) else None


def images_of(inputs: Inputs) -> Sequence[Tensor] | None:
    """The same of a call of what is known to be a detector, whose images may be in one tensor.

    Example:
        >>> import torch
        >>> len(images_of(((torch.zeros(2, 3, 8, 8),), {})))
        2
    """
    held = _only_argument(inputs)
    return list(held) if isinstance(held, Tensor) and held.dim() == 4 else image_list(inputs)


def _only_argument(inputs: Inputs) -> Any:
    args, kwargs = inputs
    held = [value for value in (*args, *kwargs.values()) if tensors_of(value)]
    return held[0] if len(held) == 1 else None


def is_of_each_image(output: Any, images: Sequence[Tensor]) -> bool:
    """Whether a model returns a dict for each image, as detectors do and layers that work on lists of features do not.

    Example:
        >>> import torch
        >>> images = [torch.zeros(3, 8, 8)]
        >>> is_of_each_image([{"boxes": torch.zeros(5, 4)}], images), is_of_each_image(images, images)
        (True, False)
    """
    of_each = isinstance(output, (list, tuple)) and len(output) == len(images)
    return of_each and all(isinstance(found, Mapping) for found in output)


def with_images(inputs: Inputs, images: Sequence[Tensor]) -> Inputs:
    """The same call with a list or tuple of other images.

    Example:
        >>> import torch
        >>> with_images((([torch.zeros(3, 8, 8)],), {"flag": True}), [])
        (([],), {'flag': True})
    """
    old = _only_argument(inputs)
    new = tuple(images) if isinstance(old, tuple) else list(images)
    args, kwargs = inputs
    kept: Mapping[str, Any] = {name: new if value is old else value for name, value in kwargs.items()}
    return tuple(new if value is old else value for value in args), dict(kept)


def each_image(inputs: Inputs) -> list[Inputs]:
    """A call of a detector for each image; the call itself if it has none.

    Example:
        >>> import torch
        >>> len(each_image((([torch.zeros(3, 8, 8)] * 2,), {})))
        2
    """
    images = images_of(inputs)
    return [inputs] if images is None else [with_images(inputs, [image]) for image in images]


def run_in_parts(run: Callable[..., Any], inputs: Inputs, count: int) -> Any:
    """Call what takes lists of ``count`` images with a list of any length, or a tensor of any batch size.

    Args:
        run: returns a list with an answer for each image.
        inputs: of one call.
        count: how many images ``run`` takes.

    Returns:
        the answers for all images. A part that has too few is filled up with its last one.

    Example:
        >>> import torch
        >>> run_in_parts(lambda images: [len(images)] * 2, (([torch.zeros(3, 8, 8)] * 3,), {}), 2)
        [2, 2, 2]
    """
    images = images_of(inputs)
    if images is None:
        return run(*inputs[0], **inputs[1])
    if len(images) == count:
        args, kwargs = with_images(inputs, images)
        return run(*args, **kwargs)
    answers: list[Any] = []
    for start in range(0, len(images), count):
        part = images[start : start + count]
        args, kwargs = with_images(inputs, [*part, *[part[-1]] * (count - len(part))])
        answers += run(*args, **kwargs)[: len(part)]
    return answers


def check_one_size(images: Sequence[Tensor], model: str) -> None:
    """Refuse images of several sizes, as a graph is of one.

    Args:
        images: of shape (channels, height, width).
        model: how the message names it.

    Raises:
        ValueError: if they differ.

    Example:
        >>> import torch
        >>> check_one_size([torch.zeros(3, 8, 8), torch.zeros(3, 9, 8)], "FasterRCNN")
        Traceback (most recent call last):
        ValueError: FasterRCNN was called with images of the sizes (3, 8, 8), (3, 9, 8), but an exported model takes ...
    """
    sizes = sorted({tuple(image.shape) for image in images})
    if len(sizes) > 1:
        raise ValueError(
            f"{model} was called with images of the sizes {', '.join(map(str, sizes))}, but an exported model takes "
            "images of one size. Resize them in the dataset, e.g. by torchvision.transforms.v2.Resize((320, 320)), or "
            "take a part that sees one size as target, e.g. QATCallback(target='model.backbone')."
        )
