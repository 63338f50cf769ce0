"""Any torchvision classifier in the shared training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from lq.models.image_classifier import ImageClassifier, check_num_classes
from lq.models.optimizer import OptimizerConfig
from lq.models.surgery import adapt_head, adapt_input, relax_strides
from lq.models.weights import build_torchvision, load_weights


class Classifier(ImageClassifier):
    """Train any torchvision classifier by name, unedited, as the submodule `model`.

    Args:
        model: as in `torchvision.models.list_models()`, for example "resnet18".
        num_classes: number of classes; a network loaded with torchvision weights of another number gets a
            new last layer.
        in_channels: channels of the images; the first convolution is replaced when it takes another number.
        relax_strides: how many of the first layers that halve the image get stride 1 instead; 0 for images
            of the usual size, 1 or 2 for 28x28 ones.
        model_args: further arguments of torchvision's builder, such as `width_mult`.
        weights: None for random weights, the name of torchvision weights such as "DEFAULT", or the path of a
            Lightning checkpoint or a state dict of the same network.
        optimizer: optimizer and schedule; None for the default SGD.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        channels_last: keep weights and activations in channels-last order, often faster on CPUs.

    Raises:
        ValueError: unknown model, argument or weights, or weights that do not fit.
        ModuleNotFoundError: torchvision is not installed.

    Example:
        >>> import torch
        >>> module = Classifier("mobilenet_v2", num_classes=10, in_channels=1, relax_strides=1,
        ...                     model_args={"width_mult": 0.35})
        >>> module(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        model: str,
        num_classes: int,
        in_channels: int = 3,
        relax_strides: int = 0,
        model_args: dict[str, Any] | None = None,
        weights: str | None = None,
        optimizer: OptimizerConfig | None = None,
        label_smoothing: float = 0.0,
        channels_last: bool = False,
    ) -> None:
        check_num_classes(num_classes)
        network = _build(model, num_classes, in_channels, relax_strides, model_args or {}, weights)
        super().__init__(network, num_classes, optimizer, label_smoothing, channels_last)


def _build(
    model: str,
    num_classes: int,
    in_channels: int,
    strides: int,
    model_args: dict[str, Any],
    weights: str | None,
) -> nn.Module:
    checkpoint = weights if weights is not None and _looks_like_a_file(weights) else None
    named = None if checkpoint else weights
    network = build_torchvision(model, num_classes, named, model_args)
    if named is not None:
        adapt_head(network, num_classes)
    adapt_input(network, in_channels)
    relax_strides(network, strides)
    if checkpoint is not None:
        if not Path(checkpoint).is_file():
            raise ValueError(
                f"weights file {checkpoint!r} does not exist; train it first (the float recipe beside this "
                "one writes it), or name torchvision weights such as 'DEFAULT', or write null."
            )
        load_weights(network, checkpoint)
    return network


def _looks_like_a_file(weights: str) -> bool:
    return Path(weights).is_file() or "/" in weights or Path(weights).suffix in (".ckpt", ".pt", ".pth")
