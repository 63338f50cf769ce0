"""What deployment targets compute with, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lq.config.specs import ActivationSpec, WeightSpec


@dataclass(frozen=True)
class Preset:
    """What a deployment target computes with.

    Example:
        >>> preset = PRESETS["portable"]
        >>> preset.engine, str(preset.weight), str(preset.activation)
        ('x86', 'int7 [-63, 63] per channel', 'uint8 [0, 255] affine, moving_average_minmax')
    """

    engine: str
    weight: WeightSpec
    activation: ActivationSpec
    about: str
    fuse_add: bool = False
    round_cheap: bool = False
    probabilities: tuple[float, float] = (0.0, 1.0)  # the range of a softmax
    factors: ActivationSpec | None = None  # what it changes for queries, keys and values


PRESETS: Mapping[str, Preset] = {
    "portable": Preset(
        "x86",
        WeightSpec(-63, 63),
        ActivationSpec(),
        "7-bit weights, 8-bit activations: no kernel saturates, with or without VNNI",
    ),
    "x86_vnni": Preset(
        "onednn",
        WeightSpec(-127, 127),
        ActivationSpec(),
        "8-bit weights and activations for x86 CPUs known to have VNNI",
    ),
    "openvino": Preset(
        "onednn",
        WeightSpec(-127, 127),
        ActivationSpec(),
        "for OpenVINO and inductor, on CPUs with VNNI: as x86_vnni, residuals added inside of convolutions",
        fuse_add=True,
        factors=ActivationSpec(-127, 127, symmetric=True),  # OpenVINO multiplies others in float
    ),
    "qnnpack": Preset("qnnpack", WeightSpec(-127, 127), ActivationSpec(), "8-bit for ARM CPUs"),
    "tensorrt": Preset(
        "onednn",
        WeightSpec(-127, 127),
        ActivationSpec(-128, 127, symmetric=True),
        "symmetric int8 weights and activations, zero point 0",
    ),
    "litert": Preset(
        "onednn",
        WeightSpec(-127, 127),
        ActivationSpec(),
        "for LiteRT on phones: as x86_vnni, and nothing between two int8 layers is left unrounded",
        round_cheap=True,
        probabilities=(0.0, 255 / 256),  # the only grid that LiteRT's int8 softmax writes: steps of 1/256 from 0
    ),
    "mcu": Preset(
        "onednn",
        WeightSpec(-127, 127),
        ActivationSpec(-128, 127),
        "for microcontrollers: int8 weights and int8 activations, nothing between two int8 layers left unrounded",
        round_cheap=True,
        probabilities=(0.0, 255 / 256),  # the only grid that LiteRT's int8 softmax writes: steps of 1/256 from 0
    ),
    "qnn": Preset(
        "onednn",
        WeightSpec(-127, 127),
        ActivationSpec(),
        "for the NPU of Qualcomm's chips: uint8 activations, int8 weights, nothing between int8 layers left unrounded",
        round_cheap=True,
    ),
}
