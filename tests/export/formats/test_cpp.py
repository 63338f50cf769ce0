"""The C++ program of the page about exporters loads what was exported, and gives the same scores."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.cpp_extension import include_paths, library_paths

import lq

PAGE = Path(__file__).parents[3] / "docs" / "exporters.md"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.skipif("x86" not in torch.backends.quantized.supported_engines, reason="needs the engine x86")
def test_libtorch_gives_the_same_scores(tmp_path: Path) -> None:
    found = re.search(r"```cpp\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found
    (tmp_path / "main.cpp").write_text(found[1])
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()
    x = torch.rand(16, 3, 8, 8)
    prepared = lq.prepare(net, "portable", example_args=(x,))
    lq.calibrate(prepared, [x], show_progress=False)
    done = lq.export_artifact(prepared, [x], tmp_path / "artifact", ["torch"])

    paths = [f"-I{path}" for path in include_paths()]
    paths += [option for path in library_paths() for option in (f"-L{path}", f"-Wl,-rpath,{path}")]
    libraries = ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run(["g++", "-std=c++20", "main.cpp", *paths, *libraries, "-o", "demo"], cwd=tmp_path, check=True)
    told = subprocess.run(["./demo"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    scores = [float(number) for number in re.findall(r"-?\d+\.\d+", told)]
    torch.testing.assert_close(torch.tensor(scores), done.models["torch"](torch.ones(1, 3, 8, 8))[0], atol=1e-3, rtol=0)
