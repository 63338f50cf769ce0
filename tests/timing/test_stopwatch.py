"""Latencies from a process of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lq.backends.prepare import prepare
from lq.deployment.deploy import export_artifact
from lq.ptq import calibrate
from lq.timing.stopwatch import Stopwatch
from tests.tiny import make_net, quicken_deployment

X = torch.randn(4, 1, 6, 6)
SAMPLE: Any = ((X[:1],), {})


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        quicken_deployment(patch)
        prepared = prepare(make_net())
        calibrate(prepared, [X])
        export_artifact(prepared, [X], tmp_path / "int8", ["torch", "pt2"])
    return tmp_path / "int8"


class Unscriptable(nn.Module):
    def forward(self, x: torch.Tensor) -> set[int]:
        return {len(x)}


def test_int8_and_float_are_timed_in_turns(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lq.timing.stopwatch.SECONDS", 0.01)
    with Stopwatch() as stopwatch:
        times = stopwatch.latencies(artifact, ["torch", "pt2"], make_net().eval(), SAMPLE)
    assert set(times) == {"torch", "pt2", "fp32 frozen", "fp32 fused"}
    assert all(t.median_ms > 0 and t.threads == 1 for t in times.values())
    assert len({t.n for t in times.values()}) == 1


def test_what_cannot_be_scripted_is_timed_eagerly(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lq.timing.stopwatch.SECONDS", 0.01)
    with Stopwatch() as stopwatch:
        assert set(stopwatch.latencies(artifact, [], Unscriptable(), SAMPLE)) == {"fp32 eager"}


def test_a_model_that_does_not_run_is_named(artifact: Path) -> None:
    (artifact / "int8.pt").write_bytes(b"")
    reason = r"(?s)a fresh process ended with exit status 1: .*int8.*checksum"
    with Stopwatch() as stopwatch, pytest.raises(RuntimeError, match=reason):
        stopwatch.latencies(artifact, ["torch"], None, SAMPLE)
