"""Examples in docstrings run without processes of their own for the gate and the latencies."""

from __future__ import annotations

import pytest
from _pytest.doctest import DoctestItem


@pytest.fixture(autouse=True)
def _quick_examples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(request.node, DoctestItem) and request.node.name.startswith(
        ("lq.deployment", "lq.export", "lq.timing")
    ):
        from tests.tiny import quicken_deployment

        quicken_deployment(monkeypatch)


@pytest.fixture(autouse=True)
def _examples_with_packages(request: pytest.FixtureRequest) -> None:
    """Skip the examples of an exporter whose runtime is not installed."""
    if isinstance(request.node, DoctestItem) and request.node.name.startswith("lq.export.formats."):
        from lq.export.exporters import EXPORTERS

        module = request.node.name.rpartition(".")[0]
        for exporter in EXPORTERS.values():
            if exporter.module == module:
                try:
                    exporter.check_installed()
                except ImportError as error:
                    pytest.skip(str(error))
                if exporter.name == "executorch":  # it warns itself under torch 2.15, as in its tests
                    request.node.add_marker(pytest.mark.filterwarnings("ignore"))
