"""Examples in docstrings run without processes of their own for the gate and the latencies."""

from __future__ import annotations

import pytest
from _pytest.doctest import DoctestItem


@pytest.fixture(autouse=True)
def _quick_examples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(request.node, DoctestItem) and request.node.name.startswith(
        ("lq.callback.deployment", "lq.deployment", "lq.export", "lq.timing")
    ):
        from tests.tiny import quicken_deployment

        quicken_deployment(monkeypatch)
