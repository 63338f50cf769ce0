"""segmentation_models_pytorch: every decoder, and encoders of several kinds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from tests.zoo.entry import Entry, Kind, of_images

DECODERS = (
    *("Unet", "UnetPlusPlus", "FPN", "Linknet", "PSPNet", "PAN"),
    *("DeepLabV3", "DeepLabV3Plus", "MAnet", "Segformer", "UPerNet"),
)


def _entry(decoder: str, encoder: str, kind: Kind = "conv", notes: str = "", **kwargs: Any) -> Entry:
    def build() -> nn.Module:
        import segmentation_models_pytorch as smp

        model: nn.Module = getattr(smp, decoder)(encoder, encoder_weights=None, classes=3, **kwargs)
        return model

    title = f"smp {decoder} {encoder}" + (f" ({notes})" if notes else "")
    size = 128 if decoder == "PAN" else 64  # PAN halves the encoder's last output three times
    return Entry(title, "segmentation_models_pytorch", build, of_images(size), kind=kind, notes=notes)


def entries() -> Iterable[Entry]:
    """Each decoder on two encoders, then Unet on others."""
    for decoder in DECODERS:
        yield _entry(decoder, "resnet18")
        yield _entry(decoder, "mobilenet_v2")
    for encoder in ("timm-mobilenetv3_small_minimal_100", "timm-efficientnet-b0", "timm-regnetx_002", "tu-resnet18"):
        yield _entry("Unet", encoder)
    for encoder in ("efficientnet-b0", "se_resnet50", "densenet121", "dpn68", "mobileone_s0"):
        yield _entry("Unet", encoder)
    yield _entry("Unet", "mit_b0", "transformer")
    yield _entry("FPN", "tu-mobilenetv3_small_050")
    yield _entry("Unet", "resnet18", notes="scse", decoder_attention_type="scse")
    auxiliary = {"classes": 4, "dropout": 0.2}
    yield _entry("Unet", "resnet18", notes="two outputs", aux_params=auxiliary)
