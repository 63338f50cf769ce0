"""Examples in docstrings: which start no processes for the gate and the latencies, and which need a C compiler."""

from __future__ import annotations

import pytest
from _pytest.doctest import DoctestItem

from lq.core import native

NEED_THE_KERNELS = ("lq.core.native.activations", "lq.core.native.weights", "lq.core.native.calls.call")


@pytest.fixture(autouse=True)
def _quick_examples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(request.node, DoctestItem) and request.node.name.startswith(
        ("lq.deployment", "lq.export", "lq.timing")
    ):
        from tests.tiny import quicken_deployment

        quicken_deployment(monkeypatch)


@pytest.fixture(autouse=True)
def _kernels(request: pytest.FixtureRequest) -> None:
    if isinstance(request.node, DoctestItem) and request.node.name.startswith(NEED_THE_KERNELS):
        kernels = native.library()
        if kernels.functions is None:
            pytest.skip(kernels.reason)
