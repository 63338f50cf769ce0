"""ONNX models that are too large for one file: here the limit is small, and everything else real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lq import calibrate, export_artifact, load, prepare
from lq.export.formats import onnx_file

pytest.importorskip("onnxruntime")

X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: Any) -> tuple[Path, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4608, 3)
    )
    prepared = prepare(net, example_args=(X,))
    calibrate(prepared, [X], show_progress=False)
    place = tmp_path_factory.mktemp("large") / "int8"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "LARGEST", 10_000)
        export_artifact(prepared, [X], place, ["onnx"])
    return place, prepared.eval()(X)


def test_weights_lie_in_a_file_of_their_own_once(artifact: tuple[Path, torch.Tensor]) -> None:
    place, expected = artifact
    sizes = {file.name: file.stat().st_size for file in place.glob("int8.onnx*")}
    weights = 16 * 32 * 9 + 4608 * 3  # bytes of the two large ones
    assert weights <= sizes["int8.onnx.data"] <= weights + 8192
    assert sizes["int8.onnx"] < weights
    # The file adds rounded biases, which may move a value over the edge of a step of 0.0007.
    torch.testing.assert_close(load(place)(X), expected, rtol=0, atol=1e-3)


def test_a_lost_or_changed_file_of_weights_is_told(artifact: tuple[Path, torch.Tensor]) -> None:
    data = artifact[0] / "int8.onnx.data"
    content = data.read_bytes()
    try:
        data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=r"int8.onnx.data is not the file that was exported"):
            load(artifact[0])
        data.unlink()
        with pytest.raises((ValueError, FileNotFoundError), match=r"int8.onnx.data"):
            load(artifact[0])
    finally:
        data.write_bytes(content)


@pytest.mark.parametrize("location", ["../other.data", "/etc/hostname", "int8.data"])
def test_weights_elsewhere_are_refused(artifact: tuple[Path, torch.Tensor], location: str, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(artifact[0] / "int8.onnx", load_external_data=False)
    outside = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    next(entry for entry in outside.external_data if entry.key == "location").value = location
    path = tmp_path / "int8.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"lies in another file .*; lq writes none but int8.onnx.data.*trust=True"):
        onnx_file.check_model_file(path)


def test_a_link_in_the_place_of_the_weights_is_refused(artifact: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    (tmp_path / "int8.onnx").write_bytes((artifact[0] / "int8.onnx").read_bytes())
    (tmp_path / "int8.onnx.data").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match=r"lies in another file"):
        onnx_file.check_model_file(tmp_path / "int8.onnx")
