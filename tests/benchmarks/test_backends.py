"""The benchmark of the backends, at tiny size."""

import argparse

import pytest

from benchmarks import backends
from benchmarks._common import TIMING_COLUMNS
from benchmarks._variants import cases
from tests.tiny import quicken_deployment

pytest.importorskip("torchao")


def test_what_every_backend_makes_of_the_digits(monkeypatch):
    pytest.importorskip("sklearn")
    quicken_deployment(monkeypatch)
    monkeypatch.setattr(backends, "EXPORTERS", ("torch",))
    monkeypatch.setattr(backends, "BACKENDS", {name: backends.BACKENDS[name] for name in ("eager", "pt2e xnnpack")})
    rows = {(row["backend"], row["model"]): row for row in backends.fidelity(1)}
    assert {name for name, _ in rows} == {"eager", "pt2e xnnpack"}
    for name in ("eager", "pt2e xnnpack"):
        assert rows[name, "int8 torch"]["agreement"] > 0.9
        assert rows[name, "fake-quantized"]["accuracy"] > 0.1
        assert rows[name, "FP32"]["layers"] == 12


def test_the_steps_of_the_vendors_own_flow_too():
    options = argparse.Namespace(batch=2, size=32, device="cpu", rounds=1)
    rows = {row["step"]: row for row in backends.measure("mlp", cases(32)["mlp"], options)}
    assert rows.keys() == {"float", "torchao PT2E", "fx", "pt2e x86_inductor", "pt2e xnnpack"}
    assert all(row["ratio"] > 0 for row in rows.values())
    assert all(set(column.keys) <= rows["fx"].keys() for column in TIMING_COLUMNS)
