"""What printing a deployment says."""

from __future__ import annotations

from lq.deployment.results import Deployment
from lq.export.parity.gate import Parity


def test_it_says_where_the_files_are_and_how_close() -> None:
    parity = {"torch": Parity(8, float("inf"), 0.0, agreement=1.0), "onnx": Parity(8, 41.26, 0.1)}
    done = Deployment(parity=parity, directory="runs/int8", notes=["a note"], failures=["'pt2' failed"])
    assert str(done).splitlines() == [
        "artifact in runs/int8: torch (100.00 % agreement, inf dB), onnx (41.3 dB)",
        "a note",
        "'pt2' failed",
    ]
    assert str(Deployment()) == "no artifact"
