"""torchvision: classification, segmentation, detection, video, optical flow, and its quantization-ready models."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from tests.zoo.entry import Entry, Inputs, Kind, images, of_images, sum_of_losses


def _entry(
    name: str,
    size: int = 32,
    kind: Kind = "conv",
    inputs: Callable[[], Inputs] | None = None,
    notes: str = "",
    **kwargs: Any,
) -> Entry:
    """A model by its registered name."""

    def build() -> nn.Module:
        from torchvision import models

        model: nn.Module = models.get_model(name, weights=None, **kwargs)
        return model

    title = f"torchvision {name}" + (f" ({notes})" if notes else "")
    return Entry(title, "torchvision", build, inputs or of_images(size), kind=kind, notes=notes)


def entries() -> Iterable[Entry]:
    """By task."""
    yield from _classification()
    yield from _segmentation()
    yield from _detection()
    yield from _video()
    yield from _quantization()


def _classification() -> Iterable[Entry]:
    yield _entry("alexnet", 64, dropout=0.1)
    names = (
        "resnet18 resnext50_32x4d mobilenet_v2 mobilenet_v3_small shufflenet_v2_x0_5 mnasnet0_5 efficientnet_b0 "
        "efficientnet_v2_s regnet_x_400mf regnet_y_400mf densenet121"
    )
    for name in names.split():
        yield _entry(name)
    yield _entry("squeezenet1_1", 64)
    yield _entry("googlenet", 64, init_weights=True, notes="more outputs in training")
    yield _entry("inception_v3", 80, init_weights=False, aux_logits=False)
    yield Entry("torchvision ConvNeXt", "torchvision", _convnext, of_images())
    yield Entry("torchvision VisionTransformer", "torchvision", _vit, of_images(), kind="transformer")
    for version in (1, 2):
        swin = functools.partial(_swin, version)
        yield Entry(f"torchvision SwinTransformer V{version}", "torchvision", swin, of_images(), kind="transformer")
    yield Entry("torchvision MaxVit", "torchvision", _maxvit, of_images(64), kind="transformer")


def _convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, 64, 2), CNBlockConfig(64, None, 1)], num_classes=10)


def _vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=10
    )


def _swin(version: int) -> nn.Module:
    from torchvision.models import swin_transformer as swin

    options: dict[str, Any] = {"patch_size": [2, 2], "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4]}
    if version == 2:
        options |= {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
    return swin.SwinTransformer(**options, window_size=[4, 4], num_classes=10)


def _maxvit() -> nn.Module:
    from torchvision.models import MaxVit

    return MaxVit(
        input_size=(64, 64),
        stem_channels=16,
        partition_size=4,
        block_channels=[16, 32],
        block_layers=[1, 1],
        head_dim=8,
        stochastic_depth_prob=0.1,
        num_classes=10,
    )


def _segmentation() -> Iterable[Entry]:
    options: dict[str, Any] = {"weights_backbone": None, "num_classes": 4}
    yield _entry("lraspp_mobilenet_v3_large", 64, **options)
    yield _entry("deeplabv3_mobilenet_v3_large", 64, **options)
    yield _entry("deeplabv3_mobilenet_v3_large", 64, notes="auxiliary output", aux_loss=True, **options)
    yield _entry("fcn_resnet50", 64, **options)


def _pictures() -> Inputs:
    return (list(images(2, 64).sigmoid()),), {}


def _with_targets() -> Inputs:
    boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]])
    targets = []
    for _ in range(2):
        masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        targets.append({"boxes": boxes + torch.rand(1, 4), "labels": torch.tensor([1, 2]), "masks": masks})
    return (list(images(2, 64).sigmoid()), targets), {}


def _detector(name: str, build: Callable[[], nn.Module], notes: str = "") -> Entry:
    return Entry(
        f"torchvision {name}",
        "torchvision",
        build,
        _pictures,
        _with_targets,
        sum_of_losses,
        "detector",
        0.9,
        notes or "boxes are decoded in float; needs targets in training",
    )


def _detection() -> Iterable[Entry]:
    for name in ("FasterRCNN", "MaskRCNN", "RetinaNet", "FCOS"):
        yield _detector(f"{name} resnet18", functools.partial(_on_pyramid, name), "frozen BatchNorms")
    yield _detector("fasterrcnn_mobilenet_v3_large_320_fpn", _faster_rcnn_mobile)
    yield _detector("SSD mobilenet_v3 (SSDLite)", _ssd_lite)


def _on_pyramid(name: str) -> nn.Module:
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    options: dict[str, Any] = {"num_classes": 4, "min_size": 64, "max_size": 64}
    if name in ("RetinaNet", "FCOS"):
        from torchvision.models.detection.anchor_utils import AnchorGenerator

        sizes = ((8,), (16,), (32,), (64,), (128,))
        ratios = ((1.0,),) if name == "FCOS" else ((0.5, 1.0, 2.0),)
        anchors = AnchorGenerator(sizes, ratios * len(sizes))
        options |= {"anchor_generator": anchors, "score_thresh": 0.0, "detections_per_img": 10, "topk_candidates": 20}
    else:
        options |= {"box_score_thresh": 0.0, "box_detections_per_img": 10, "rpn_post_nms_top_n_test": 20}
        options |= {"rpn_post_nms_top_n_train": 20, "box_batch_size_per_image": 20}
    model: nn.Module = getattr(detection, name)(backbone, **options)
    return model


def _faster_rcnn_mobile() -> nn.Module:
    from torchvision.models import detection

    model: nn.Module = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=4,
        min_size=64,
        max_size=64,
        box_score_thresh=0.0,
        box_detections_per_img=10,
        rpn_post_nms_top_n_test=20,
        rpn_post_nms_top_n_train=20,
    )
    return model


def _ssd_lite() -> nn.Module:
    from torchvision.models import detection

    model: nn.Module = detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4, score_thresh=0.0, detections_per_img=10
    )
    return model


def _clip(frames: int = 4, size: int = 32) -> Inputs:
    return (torch.stack([images(2, size) for _ in range(frames)], dim=2),), {}


def _video() -> Iterable[Entry]:
    yield _entry("r3d_18", inputs=_clip)
    yield _entry("mc3_18", inputs=_clip)
    yield _entry("r2plus1d_18", inputs=_clip)
    yield Entry("torchvision SwinTransformer3d", "torchvision", _swin_3d, _clip, kind="transformer")
    flow: Callable[[], Inputs] = lambda: ((images(1, 128), images(1, 128)), {"num_flow_updates": 2})  # noqa: E731
    yield _entry("raft_small", kind="other", inputs=flow, notes="optical flow")


def _swin_3d() -> nn.Module:
    from torchvision.models.video import SwinTransformer3d

    return SwinTransformer3d(
        patch_size=[2, 4, 4], embed_dim=16, depths=[1, 2], num_heads=[2, 4], window_size=[2, 4, 4], num_classes=10
    )


def _quantization() -> Iterable[Entry]:
    for name in ("mobilenet_v2", "mobilenet_v3_large", "resnet18", "shufflenet_v2_x0_5"):
        yield _entry(f"quantized_{name}", quantize=False, notes="quantization-ready")
