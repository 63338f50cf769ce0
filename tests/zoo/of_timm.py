"""timm: a model of every family, the smallest variant, on inputs as small as it takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from tests.zoo.entry import Entry, Kind, of_images


def _entry(name: str, kind: Kind, size: int = 32, notes: str = "", **kwargs: Any) -> Entry:
    def build() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=10, **kwargs)
        return model

    return Entry(f"timm {name}", "timm", build, of_images(size), kind=kind, notes=notes)


def _conv(names: str, size: int = 32) -> Iterable[Entry]:
    return (_entry(name, "conv", size) for name in names.split())


def entries() -> Iterable[Entry]:
    """Convolutional families, then those with attention or token mixing."""
    yield from _conv(
        "resnet18 resnet26d resnetv2_18 resnext26ts seresnet18 seresnext26d_32x4d skresnet18 ecaresnet26t resnest14d "
        "res2net50_26w_4s "
        "regnetx_002 regnety_002 regnetz_005 gernet_s repvgg_a0 mobileone_s0 cspresnet50 cspdarknet53 cspnext_tiny "
        "dla34 dla46_c densenet121 dpn48b hrnet_w18_small selecsls42 ese_vovnet19b_slim darknet17 "
        "mobilenetv1_100 mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small_035 mnasnet_small "
        "semnasnet_050 "
        "efficientnet_b0 efficientnet_lite0 efficientnetv2_rw_t tf_efficientnet_b0 tf_efficientnetv2_b0 "
        "tf_efficientnet_lite0 tf_mixnet_s hardcorenas_a fbnetc_100 spnasnet_100 lcnet_035 tinynet_e rexnet_100 "
        "rexnetr_100 ghostnet_050 repghostnet_050 hgnetv2_b0 starnet_s050 "
        "repvit_m0_9 convmixer_768_32 rdnet_tiny"
    )
    yield from _conv("inception_v3 inception_v4 inception_resnet_v2 xception41", 80)
    yield from _conv("ghostnetv2_100 ghostnetv3_050", 64)
    yield _entry("vgg11_bn", "conv", mlp_ratio=0.05)
    yield _entry("convnext_atto", "conv")
    yield _entry("convnextv2_atto", "conv")
    yield _entry("inception_next_atto", "conv")
    yield _entry("mambaout_femto", "conv")
    yield _entry("fastvit_t8", "conv", 64)
    yield _entry("dm_nfnet_f0", "conv", 64, "weights standardized in forward, Conv2dSame")
    yield _entry("nfnet_l0", "conv", notes="weights standardized in forward")
    yield _entry("resnetv2_50d_gn", "conv", notes="GroupNorm, before the convolutions")
    yield _entry("resnetv2_50x1_bit", "conv", 64, "weights standardized in forward")
    yield _entry("botnet26t_256", "conv", 64, img_size=64, notes="attention with relative positions in the last stage")
    yield _entry("halonet26t", "conv", 256)
    yield _entry("lambda_resnet26t", "conv", 64)

    yield _entry("vit_tiny_patch16_224", "transformer", img_size=32, depth=2)
    yield _entry("vit_relpos_small_patch16_224", "transformer", img_size=32, depth=2)
    yield _entry("vit_small_patch14_dinov2", "transformer", 28, img_size=28, depth=2)
    yield _entry("vit_small_patch16_dinov3", "transformer", img_size=32, depth=2)
    yield _entry("samvit_base_patch16", "transformer", img_size=64, depth=2, embed_dim=96)
    yield _entry("deit_tiny_distilled_patch16_224", "transformer", img_size=32, depth=2)
    yield _entry("deit3_small_patch16_224", "transformer", img_size=32, depth=2)
    yield _entry("beit_base_patch16_224", "transformer", img_size=32, depth=2, embed_dim=96, num_heads=3)
    yield _entry("beitv2_base_patch16_224", "transformer", img_size=32, depth=2, embed_dim=96, num_heads=3)
    yield _entry("eva02_tiny_patch14_224", "transformer", 28, img_size=28, depth=2)
    yield _entry("cait_xxs24_224", "transformer", img_size=32, depth=2)
    yield _entry("xcit_nano_12_p16_224", "transformer", img_size=32, depth=2)
    yield _entry("volo_d1_224", "transformer", 32, img_size=32)
    yield _entry("crossvit_tiny_240", "transformer", 240)
    yield _entry("pit_ti_224", "transformer", 64, img_size=64)
    yield _entry("swin_tiny_patch4_window7_224", "transformer", 64, img_size=64, depths=(1, 1, 1, 1), window_size=2)
    yield _entry("swinv2_tiny_window8_256", "transformer", 64, img_size=64, depths=(1, 2, 1, 1), window_size=2)
    yield _entry("swinv2_cr_tiny_224", "transformer", 64, img_size=64, depths=(1, 2, 1, 1), window_size=2)
    yield _entry("swin_s3_tiny_224", "transformer", 224)
    yield _entry("twins_pcpvt_small", "transformer", 32, img_size=32)
    yield _entry("twins_svt_small", "transformer", 224)
    yield _entry("pvt_v2_b0", "transformer", 64)
    yield _entry("nest_tiny", "transformer", 64, img_size=64)
    yield _entry("focalnet_tiny_srf", "conv", 64)
    yield _entry("hiera_tiny_224", "transformer", 64, img_size=(64, 64))
    yield _entry("davit_tiny", "transformer", 64, depths=(1, 1, 1, 1))
    yield _entry("gcvit_xxtiny", "transformer", 224)
    yield _entry("mvitv2_tiny", "transformer", 64, img_size=64)
    yield _entry("tiny_vit_5m_224", "transformer", 224)
    yield _entry("coat_lite_tiny", "transformer", 64, img_size=64)
    yield _entry("coat_tiny", "transformer", 64, img_size=64)
    yield _entry("coatnet_nano_rw_224", "transformer", 64, img_size=64)
    yield _entry("maxvit_pico_rw_256", "transformer", 64, img_size=64)
    yield _entry("maxxvit_rmlp_nano_rw_256", "transformer", 64, img_size=64)
    yield _entry("convit_tiny", "transformer", 32, img_size=32, depth=4)
    yield _entry("tnt_s_patch16_224", "transformer", 32, img_size=32, depth=2)
    yield _entry("visformer_tiny", "transformer", 64, img_size=64)
    yield _entry("levit_128s", "transformer", 224)
    yield _entry("efficientformer_l1", "transformer", 224)
    yield _entry("efficientformerv2_s0", "transformer", 224)
    yield _entry("efficientvit_b0", "transformer", 64)
    yield _entry("efficientvit_m0", "transformer", 224)
    yield _entry("edgenext_xx_small", "transformer", 64)
    yield _entry("mobilevit_xxs", "transformer", 64)
    yield _entry("mobilevitv2_050", "transformer", 64)
    yield _entry("mobilenetv4_hybrid_medium", "transformer", 64)
    yield _entry("swiftformer_xs", "transformer", 64)
    yield _entry("shvit_s1", "transformer", 64)
    yield _entry("nextvit_small", "transformer", 64)
    yield _entry("poolformer_s12", "conv", 64)
    yield _entry("caformer_s18", "transformer", 64)
    yield _entry("sequencer2d_s", "recurrent", 64, img_size=64)
    yield _entry("mixer_s32_224", "transformer", 64, img_size=64)
    yield _entry("gmlp_ti16_224", "transformer", 32, img_size=32)
    yield _entry("resmlp_12_224", "transformer", 32, img_size=32)
    yield _entry("naflexvit_base_patch16_gap", "transformer", 32, depth=2, embed_dim=96, num_heads=3)
