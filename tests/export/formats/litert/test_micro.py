"""The same file in the interpreter of microcontrollers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lq.export.formats.litert import FILE
from tests.export.formats.litert.ran import in_litert, steps_apart
from tests.export.nets import IMAGES, Residual, images

pytest.importorskip("ai_edge_litert")
runtime = pytest.importorskip("tflite_micro.python.tflite_micro.runtime")


def test_it_computes_the_same_and_says_what_memory_it_takes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    ran = in_litert(Residual(), IMAGES, tmp_path, "litert", full_int8=True)
    interpreter = runtime.Interpreter.from_file(str(tmp_path / FILE))
    found = []
    for image in images(64).split(1):
        interpreter.set_input(image.numpy(), 0)
        interpreter.invoke()
        found.append(torch.from_numpy(interpreter.get_output(0).copy()))
    expected, _ = ran.outputs(images(64))
    # It adds in fixed point: a step of an addition in front of two layers.
    assert steps_apart(expected, torch.cat(found)) <= 2
    assert (torch.cat(found).argmax(1) == expected.argmax(1)).float().mean() > 0.95

    interpreter.print_allocations()
    said = "".join(capfd.readouterr())
    arena = re.search(r"Arena allocation total (\d+) bytes", said)
    assert arena is not None, said
    assert int(arena[1]) < 20_000, "activations of this net have some 2 kB at once"
