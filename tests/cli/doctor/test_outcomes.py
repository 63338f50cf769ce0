"""What is tried runs in a process of its own."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
import torch

from lq.cli.doctor import outcomes
from lq.cli.doctor.outcomes import names_of_trials, rows_of, run_trials
from lq.config.presets import PRESETS
from lq.export.exporters import EXPORTERS
from lq.export.parity.fresh_process import WorkerError


@pytest.mark.skipif(platform.machine() != "x86_64", reason="VNNI is of x86")
def test_a_preset_whose_kernels_saturate_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    if "onednn" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build of PyTorch has no oneDNN")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # as on a CPU without VNNI
    found = run_trials(["preset portable", "preset x86_vnni", "exporter torch", "exporter executorch"])
    assert found["preset portable"]["works"]
    assert not found["preset x86_vnni"]["works"]
    assert found["preset x86_vnni"]["sqnr_db"] < 25
    assert found["exporter torch"]["works"]
    assert found["exporter executorch"]["works"] or "needs executorch" in found["exporter executorch"]["error"]


def test_what_kills_its_process_does_not_work_and_the_rest_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def die_at_b(module: str, results: str, *names: str) -> None:
        with Path(results).open("a") as file:
            for name in names:
                if name == "b":
                    raise WorkerError("a fresh process was killed by SIGILL")
                file.write(json.dumps({"name": name, "works": True}) + "\n")

    monkeypatch.setattr(outcomes, "run_module", die_at_b)
    found = run_trials(["a", "b", "c"])
    assert [found[name]["works"] for name in "abc"] == [True, False, True]
    assert "SIGILL" in found["b"]["error"]


def test_a_look_names_all_and_claims_nothing() -> None:
    found = rows_of({})
    assert [row["name"] for row in found["presets"]] == list(PRESETS)
    assert [row["name"] for row in found["exporters"]] == list(EXPORTERS)
    assert {row["works"] for rows in found.values() for row in rows} <= {None, False}
    assert len(names_of_trials()) == len(PRESETS) + len(EXPORTERS)


def test_a_package_is_named_once() -> None:
    for row in rows_of({})["exporters"]:
        names = [name.replace("_", "-") for name in row["packages"]]
        assert len(names) == len(set(names)), row["name"]


def test_an_engine_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "_engines", lambda: ["qnnpack"])
    portable = rows_of({})["presets"][0]
    assert portable["works"] is False
    assert "no engine 'x86'" in portable["error"]
