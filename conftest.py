"""Examples in docstrings: which start no processes for the gate and the latencies, and what others need."""

from __future__ import annotations

import pytest
from _pytest.doctest import DoctestItem

from lq.core import native

NEED_A_PACKAGE = {
    "lq.analysis.tensors.compared_part": "torchvision",
    "lq.backends.pt2e.": "torchao",
    "lq.export.formats.litert": "ai_edge_litert",
    "lq.export.formats.mcu": "tflite_micro",
    "lq.export.formats.mcu.vela": "ethosu",
}
NEED_THE_KERNELS = ("lq.core.native.activations", "lq.core.native.weights", "lq.core.native.calls.call")


@pytest.fixture(autouse=True)
def _quick_examples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(request.node, DoctestItem) and request.node.name.startswith(
        ("lq.analysis.bits", "lq.callback.deployment", "lq.deployment", "lq.export", "lq.timing")
    ):
        from tests.tiny import quicken_deployment

        quicken_deployment(monkeypatch)


@pytest.fixture(autouse=True)
def _what_is_needed(request: pytest.FixtureRequest) -> None:
    if not isinstance(request.node, DoctestItem):
        return
    for names, package in NEED_A_PACKAGE.items():
        if request.node.name.startswith(names):
            pytest.importorskip(package)
    if request.node.name.startswith(NEED_THE_KERNELS) and native.library().functions is None:
        pytest.skip(native.library().reason)
