"""Examples in docstrings: they start no processes for gate, latencies and doctor, and some need other packages."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from _pytest.doctest import DoctestItem

from lq.core import native

QUICKENED = ("lq.analysis.bits", "lq.callback.deployment", "lq.cli", "lq.deployment", "lq.export", "lq.timing")
NEED_A_PACKAGE = {
    "lq.analysis.tensors.compared_part": "torchvision",
    "lq.backends.pt2e.": "torchao",
    "lq.cli.analyze.": "sklearn",
    "lq.cli.bits.": "sklearn",
    "lq.cli.common.calibrate_target": "sklearn",
    "lq.cli.common.prepared_target": "sklearn",
    "lq.cli.deployment.deploy_with_validation": "sklearn",
    "lq.cli.export.": "sklearn",
    "lq.cli.ptq.": "sklearn",
    "lq.cli.report.": "matplotlib",
    "lq.compat.torchvision_private.": "torchvision",
    "lq.export.formats.litert": "ai_edge_litert",
    "lq.export.formats.mcu": "tflite_micro",
    "lq.export.formats.mcu.vela": "ethosu",
}
NEED_THE_KERNELS = ("lq.core.native.activations", "lq.core.native.weights", "lq.core.native.calls.call")


@pytest.fixture(autouse=True)
def _quick_examples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(request.node, DoctestItem) and request.node.name.startswith(QUICKENED):
        from tests.tiny import quicken_deployment

        quicken_deployment(monkeypatch)
        monkeypatch.setattr("lq.cli.doctor.outcomes.run_module", _run_here)


def _run_here(name: str, *arguments: str) -> None:
    threads = torch.get_num_threads()
    import_module(name).main(*arguments)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _what_examples_need(request: pytest.FixtureRequest) -> None:
    if not isinstance(request.node, DoctestItem):
        return
    for names, package in NEED_A_PACKAGE.items():
        if request.node.name.startswith(names):
            pytest.importorskip(package)
    if request.node.name.startswith(NEED_THE_KERNELS) and native.library().functions is None:
        pytest.skip(native.library().reason)


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
