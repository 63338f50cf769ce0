"""Examples in docstrings: which start no processes for the gate and the latencies, and which need a package."""

from __future__ import annotations

import pytest
from _pytest.doctest import DoctestItem

NEED_A_PACKAGE = {
    "lq.export.formats.litert": "ai_edge_litert",
    "lq.export.formats.mcu": "tflite_micro",
    "lq.export.formats.mcu.vela": "ethosu",
}


@pytest.fixture(autouse=True)
def _quick_examples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(request.node, DoctestItem) and request.node.name.startswith(
        ("lq.deployment", "lq.export", "lq.timing")
    ):
        from tests.tiny import quicken_deployment

        quicken_deployment(monkeypatch)


@pytest.fixture(autouse=True)
def _what_is_needed(request: pytest.FixtureRequest) -> None:
    if isinstance(request.node, DoctestItem):
        for names, package in NEED_A_PACKAGE.items():
            if request.node.name.startswith(names):
                pytest.importorskip(package)
