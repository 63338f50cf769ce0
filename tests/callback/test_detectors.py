"""A whole detector as target: trained, compared, exported with its choice of boxes, and run on lists of any length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.ops import MultiScaleRoIAlign

import lq
from lq import QATCallback
from lq.analysis import sqnr_per_layer
from lq.conversion.graph import as_graph
from lq.core.modules import QATLayer
from lq.metrics.detections import detection_agreement
from tests.detectors import DETECTORS, SIZE, LitDetector, anchors, as_tuples, batches, body, photographs
from tests.tiny import quicken_deployment

SCHEDULE = {"start": 1, "observer_off": 2, "freeze_bn": 2}


def trainer_of(callback: QATCallback, folder: Path, **settings: Any) -> L.Trainer:
    return L.Trainer(
        max_epochs=3, accelerator="cpu", callbacks=[callback], logger=False, default_root_dir=folder,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip


@pytest.fixture
def images() -> list[Tensor]:
    return [image for image, _ in photographs(5, seed=1)]


def test_a_detector_is_trained_and_exported_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: list[Tensor]
) -> None:
    quicken_deployment(monkeypatch)
    L.seed_everything(0)
    module = LitDetector(DETECTORS["RetinaNet"]())
    callback = QATCallback(schedule=SCHEDULE, export_dir=tmp_path / "int8", exporters=["torch", "onnx"])
    # The first call is one in training, with targets, which the exported model has no use for.
    trainer = trainer_of(callback, tmp_path, num_sanity_val_steps=0)
    trainer.fit(module, batches(16, 2), batches(5, 2, seed=1))
    assert callback.plan is not None
    assert callback.plan.share == 1.0, "backbone and heads"
    assert callback.deployment is not None
    assert set(callback.deployment.models) == {"torch", "onnx"}
    results = callback.deployment.results
    assert "val_iou" in results["fp32"]
    for kind in ("torch", "onnx"):
        parity = callback.deployment.parity[kind]
        assert parity.detections
        assert parity.sqnr_db > 40
        assert results[f"{kind}_vs_fake"].keys() == {"agreement"}
        assert abs(results[kind]["val_iou"] - results["fake"]["val_iou"]) < 0.05
    assert any("one image at a time" in note for note in callback.deployment.notes)
    with torch.no_grad():
        expected = module.eval().model(images)
    for kind in ("torch", "onnx"):
        int8 = lq.load(tmp_path / "int8", kind)
        with pytest.raises(ValueError, match=r"but was called with targets=...; leave it out in evaluation"):
            int8(images[:2], [{"boxes": torch.zeros(1, 4)}] * 2)
        found = int8(images)  # five, where the graph takes one
        assert len(found) == 5
        assert detection_agreement(expected, found) > 0.9
        alone = int8(images[4:5])
        assert detection_agreement(found[4:5], alone) > 0.999
        with pytest.raises(ValueError, match=r"images of the size \(3, 64, 64\), but was called with \(3, 32, 64\)"):
            int8([torch.zeros(3, 32, 64)])


def test_a_detector_may_get_its_images_in_one_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: list[Tensor]
) -> None:
    quicken_deployment(monkeypatch)
    L.seed_everything(0)
    module = LitDetector(DETECTORS["FCOS"](), gives_targets=True)
    callback = QATCallback(schedule=SCHEDULE, export_dir=tmp_path / "int8", int8_every_n_epochs=1)

    def stacked(samples: Any) -> Any:
        return torch.stack([image for image, _ in samples]), [target for _, target in samples]

    loaders = [
        torch.utils.data.DataLoader(photographs(count, seed), batch_size=2, collate_fn=stacked)  # type: ignore[arg-type]
        for count, seed in ((8, 0), (5, 1))
    ]
    trainer = trainer_of(callback, tmp_path)
    trainer.fit(module, *loaders)
    assert {"qat/fp32/val_iou", "qat/int8/val_iou"} < trainer.callback_metrics.keys()
    assert callback.deployment is not None
    assert "val_iou" in callback.deployment.results["torch"], "of five images, the last alone in its batch"
    int8 = lq.load(tmp_path / "int8")
    for count in (1, 2, 5):
        found = int8(torch.stack(images[:count]))
        assert detection_agreement(int8(images[:count]), found) > 0.999
        assert len(found) == count


def test_images_of_several_sizes_are_refused_before_the_first_step(tmp_path: Path) -> None:
    samples = [photographs(1)[0], (torch.rand(3, SIZE, SIZE // 2), photographs(1)[0][1])]
    loader = torch.utils.data.DataLoader(samples, batch_size=2, collate_fn=as_tuples)  # type: ignore[arg-type]
    module = LitDetector(DETECTORS["RetinaNet"]())
    trainer = trainer_of(QATCallback(schedule=SCHEDULE), tmp_path)
    with pytest.raises(ValueError, match=r"RetinaNet was called with images of the sizes .* Resize them"):
        trainer.fit(module, loader, loader)
    assert trainer.global_step == 0


@pytest.mark.parametrize("name", DETECTORS)
def test_every_kind_is_calibrated_and_exported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: list[Tensor]
) -> None:
    quicken_deployment(monkeypatch)
    torch.manual_seed(0)
    detector = DETECTORS[name]()
    for given, targets in batches(16, 8):
        sum(detector(given, targets).values()).backward()  # statistics of BatchNorm
    detector.eval()
    calls = [(images[:2],), (images[2:4],)]
    prepared = lq.prepare(detector, example_args=calls[0])
    lq.calibrate(prepared, calls)
    done = lq.export_artifact(
        prepared, calls, tmp_path / "int8", ["torch", "onnx", "pt2"], lq.Gate(min_detection_agreement=0.5)
    )
    for parity in done.parity.values():
        assert parity.passed
        assert parity.sqnr_db > 25
    assert done.parity["pt2"].agreement == 1.0, "the same operators"


def test_a_layer_that_computes_something_else_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: list[Tensor]
) -> None:
    """Boxes may agree where the layers that they are chosen by do not."""
    quicken_deployment(monkeypatch)
    torch.manual_seed(0)
    prepared = lq.prepare(DETECTORS["RetinaNet"]().eval(), example_args=(images[:2],))
    lq.calibrate(prepared, [(images[:2],)])
    original = QATLayer.integer_weight

    def off(self: QATLayer, *args: Any) -> Any:
        integers, scale, bias = original(self, *args)
        return integers, scale * 1.2, bias

    monkeypatch.setattr(QATLayer, "integer_weight", off)
    gate = lq.Gate(min_detection_agreement=None, excuse_rounding=False)
    with pytest.raises(RuntimeError, match=r"'torch' does not compute what was trained: SQNR .* dB is below 25.0 dB"):
        lq.export_artifact(prepared, [(images[:2],)], tmp_path / "int8", ["torch"], gate)


def test_noise_is_measured_up_to_the_choice_of_boxes(images: list[Tensor]) -> None:
    torch.manual_seed(0)
    prepared = lq.prepare(DETECTORS["Faster R-CNN"]().eval(), example_args=(images[:1],))
    lq.calibrate(prepared, [(images[:1],)])
    rows = {row["name"]: row for row in sqnr_per_layer(prepared, [(images[:1],)]) if row["kind"] != "weight"}
    assert rows["output"]["accumulated_db"] is None
    assert rows["backbone.0"]["accumulated_db"] > 10
    second = [row for name, row in rows.items() if name.startswith("roi_heads.")]
    assert second
    assert all(row["sqnr_db"] > 10 and row["accumulated_db"] is None for row in second)


def test_masks_are_pasted_in_a_loop_which_the_error_names(images: list[Tensor]) -> None:
    kept = {"box_roi_pool": MultiScaleRoIAlign(["0"], 5, 2), "mask_roi_pool": MultiScaleRoIAlign(["0"], 6, 2)}
    detector = MaskRCNN(body(), 2, SIZE, SIZE, rpn_anchor_generator=anchors(), **kept).eval()
    prepared = lq.prepare(detector, example_args=(images[:1],))
    with pytest.raises(ValueError, match=r"MaskRCNN has no graph .*roi_heads.py:\d+, in .*QATCallback\(target="):
        as_graph(prepared)
