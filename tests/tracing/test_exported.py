from __future__ import annotations

import gc
from collections import Counter

import torch
from torch import nn

import lq


def test_conversions_leave_nothing_behind() -> None:
    def known() -> Counter[str]:
        gc.collect()
        names = ("ShapeEnv", "FakeTensorMode", "FakeTensor", "ExportedProgram")
        return Counter(kind for thing in gc.get_objects() if (kind := type(thing).__name__) in names)

    x = torch.randn(4, 3)
    prepared = lq.prepare(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), example_args=(x,))
    lq.calibrate(prepared, [x], show_progress=False)
    lq.convert(prepared)
    before = known()
    for _ in range(3):
        lq.convert(prepared)
    assert known() == before
