"""Small changes that let a torchvision classifier take other images and other classes."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)


def adapt_input(model: nn.Module, in_channels: int) -> nn.Module:
    """Replace the first convolution, where needed, by one that takes `in_channels` channels.

    Args:
        model: any network whose first `Conv2d`, in the order of definition, reads the image.
        in_channels: channels of the images.

    Returns:
        The same model, changed in place.

    Raises:
        ValueError: the model has no `Conv2d`.

    Example:
        >>> adapt_input(nn.Sequential(nn.Conv2d(3, 8, 3)), in_channels=1)
        Sequential(
          (0): Conv2d(1, 8, kernel_size=(3, 3), stride=(1, 1))
        )
    """
    name, conv = _find(model, nn.Conv2d, last=False)
    if conv.in_channels != in_channels:
        new = nn.Conv2d(
            in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
        )
        model.set_submodule(name, new)
    return model


def adapt_head(model: nn.Module, num_classes: int) -> nn.Module:
    """Replace the last `Linear`, where needed, by one with `num_classes` outputs.

    Args:
        model: any network whose last `Linear`, in the order of definition, gives the logits.
        num_classes: number of classes.

    Returns:
        The same model, changed in place.

    Raises:
        ValueError: the model has no `Linear`.

    Example:
        >>> adapt_head(nn.Sequential(nn.Linear(8, 1000)), num_classes=10)
        Sequential(
          (0): Linear(in_features=8, out_features=10, bias=True)
        )
    """
    name, linear = _find(model, nn.Linear, last=True)
    if linear.out_features != num_classes:
        new = nn.Linear(linear.in_features, num_classes, bias=linear.bias is not None)
        model.set_submodule(name, new)
    return model


def relax_strides(model: nn.Module, count: int) -> nn.Module:
    """Give stride 1 to the first `count` convolutions or poolings that halve the image.

    Networks for 224x224 images halve them five times; a 28x28 image would end at one pixel.

    Args:
        model: any network whose layers are defined in the order in which they run.
        count: how many layers to change; 0 changes nothing.

    Returns:
        The same model, changed in place.

    Raises:
        ValueError: the model has fewer such layers.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.MaxPool2d(2))
        >>> relax_strides(net, 1)[0].stride, net[1].stride
        ((1, 1), 2)
    """
    strided = [
        layer
        for layer in model.modules()
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)) and layer.stride in (2, (2, 2))
    ]
    if count < 0 or count > len(strided):
        raise ValueError(
            f"relax_strides must be between 0 and {len(strided)}, the number of layers of this model "
            f"that halve the image; got {count}."
        )
    for layer in strided[:count]:
        layer.stride = (1, 1)
    return model


def _find(model: nn.Module, kind: type[Layer], last: bool) -> tuple[str, Layer]:
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, kind)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no {kind.__name__} layer to adapt.")
    return found[-1 if last else 0]
