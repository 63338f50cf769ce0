"""``int8.onnx`` in the WebAssembly that browsers run.

It needs node and the npm package: ``npm install onnxruntime-web`` in the root of the repository, or NODE_PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lq.export.formats.onnx import FILE
from tests.export.formats.litert.ran import steps_apart
from tests.export.nets import IMAGES, example_of, images, residual, round_trip

SCRIPT = Path(__file__).with_name("browser.cjs")
ROOT = SCRIPT.parents[3]

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def node(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = shutil.which("node")
    if path is None:
        pytest.skip("node is not installed")
    places = os.pathsep.join(filter(None, [os.environ.get("NODE_PATH"), str(ROOT / "node_modules")]))
    environment = {**os.environ, "NODE_PATH": places}
    return subprocess.run([path, *arguments], env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(autouse=True)
def _installed() -> None:
    if node("-e", "require.resolve('onnxruntime-web')").returncode:
        pytest.skip("the npm package onnxruntime-web is not installed")


def in_the_browser(model: Path, x: Tensor, place: Path) -> Tensor:
    given, returned = place / "given.bin", place / "returned.bin"
    given.write_bytes(x.numpy().tobytes())
    done = node(str(SCRIPT), str(model), str(given), json.dumps(x.shape), str(returned))
    assert done.returncode == 0, done.stderr
    return torch.from_numpy(np.fromfile(returned, np.float32)).reshape(len(x), -1)


def test_it_computes_what_onnx_runtime_computes(tmp_path: Path) -> None:
    prepared = residual("x86_vnni")  # whose sums are the largest
    model, _ = round_trip("onnx", prepared, example_of(IMAGES), tmp_path)
    x = images(50)
    got = in_the_browser(tmp_path / FILE, x, tmp_path)
    # The same sums, so integers of a layer differ where the two scale a tie to different sides.
    assert steps_apart(model(x), got) <= 1
    with torch.no_grad():
        assert (got.argmax(1) == prepared(x).argmax(1)).float().mean() >= 0.98
