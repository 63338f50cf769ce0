"""Models of chips that are not here, in an artifact."""

from __future__ import annotations

from pathlib import Path

import pytest

from lq.deployment.deploy import export_artifact
from lq.export.artifact.manifest import read_manifest
from lq.export.formats.mcu import vela
from lq.timing.bench import bench
from lq.timing.chips import on_chips
from tests.export.nets import images, residual
from tests.tiny import quicken_deployment

pytest.importorskip("ai_edge_litert")
pytest.importorskip("tflite_micro")
pytest.importorskip("ethosu.vela")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("chips") / "int8"
    with pytest.MonkeyPatch.context() as monkeypatch:
        quicken_deployment(monkeypatch)
        done = export_artifact(residual("mcu"), [images(50)], directory, ["mcu", "litert"])
    assert done.parity["mcu"].passed
    assert done.parity["mcu"].samples == 32, "reference kernels are slow, so that the gate takes the first samples"
    assert done.parity["litert"].samples == 50
    assert any("ran 32 of 50 samples" in note for note in done.notes)
    times = {row["model"]: row.get("latency_ms") for row in done.rows}
    assert times["int8 litert"] is not None
    assert times["int8 mcu"] is None, "no time of this machine is that of a microcontroller"
    return directory


def test_figures_of_chips_stand_in_the_benchmark_and_no_times_of_this_machine(artifact: Path) -> None:
    found = bench(artifact, batch_sizes=[1], min_time=0.01, compile=False, npu="ethos-u65-256")
    assert [row["model"] for row in found.rows] == ["int8 litert"]
    assert any("int8 mcu is not timed: the reference kernels of tflite-micro" in note for note in found.notes)
    micro, phone = found.chips
    assert (micro["model"], phone["model"]) == ("int8 mcu", "int8 litert")
    assert micro["arena_bytes"] > 0
    assert micro["npu"].startswith("ethos-u65-256")
    assert "arena_bytes" not in phone
    assert any(note.startswith("int8 mcu on ethos-u65-256") for note in found.notes)


def test_a_missing_compiler_is_told_for_microcontrollers_alone(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vela.importlib.util, "find_spec", lambda name: None)
    rows, notes = on_chips(artifact, read_manifest(artifact), "ethos-u55-128")
    assert [row["model"] for row in rows] == ["int8 mcu"]
    assert [note for note in notes if "pip install" in note] == [
        "int8 mcu: what an Ethos-U makes of it needs vela, not installed here: pip install ethos-u-vela"
    ]
