from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lq.backends.prepare import prepare
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.conversion.graph import as_graph
from lq.deployment.destination import Destination
from lq.deployment.gated_export import gated_export
from lq.deployment.rehearsal import rehearse
from lq.deployment.results import Compared, Deployment
from lq.deployment.settings import ExportSettings
from lq.export.artifact.int8_model import Int8Model, load, load_prepared_state
from lq.export.formats import torchscript
from lq.export.formats.torchscript import FILE
from lq.export.parity.fresh_process import WorkerError
from lq.export.parity.gate import Gate
from lq.export.parity.worker import Worker
from lq.metrics import main_tensor, sqnr
from lq.metrics.detections import comparable
from lq.ptq import calibrate
from tests.export import faulty, nets
from tests.export.nets import Residual, example_of, images, residual
from tests.tiny import quicken_deployment

EXAMPLE = example_of(images(4))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)
    faulty.register(monkeypatch)


def delivered(settings: ExportSettings, prepared: fx.GraphModule | None = None, **kwargs: Any) -> Deployment:
    prepared = prepared or residual()

    def compare(models: Mapping[str, Int8Model], keep: int) -> Compared:
        calls = [example_of(images(8, seed)) for seed in range(keep)]
        with torch.no_grad():
            answered = [(call, main_tensor(prepared(*call[0]))) for call in calls]
        return Compared({"fake": {"accuracy": 0.5}}, answered)

    return gated_export(prepared, EXAMPLE, compare, settings, **kwargs)


def manifest(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "lq.json").read_text())
    return content


def test_the_manifest_says_what_where_from_and_how_close(tmp_path: Path) -> None:
    net, directory = Residual(), tmp_path / "int8"
    done = delivered(
        ExportSettings(["torch", "pt2"], directory=directory, manifest={"recipe": "mine"}), float_model=net
    )
    assert done.failures == done.notes == []
    content = manifest(directory)
    assert list(content["artifacts"]) == ["torch", "pt2"]
    assert content["artifacts"]["torch"]["int8_layers"] == {"Conv2d": 5, "Linear": 2}
    assert content["recipe"] == "mine"
    assert content["signature"]["inputs"] == [
        {"name": "x", "shape": ["batch", 3, 8, 8], "dtype": "float32", "sizes": [4, 3, 8, 8]}
    ]
    assert content["parity"]["pt2"]["passed"] is True
    assert content["parity"]["pt2"]["samples"] == 80
    assert content["results"]["fake"] == {"accuracy": 0.5}
    assert content["results"]["pt2_vs_fake"]["agreement"] == 1.0
    assert [row["model"] for row in content["table"]] == ["FP32", "fake-quantized", "int8 torch", "int8 pt2"]
    assert content["qconfig"]["preset"] == "portable"
    assert len(content["plan"]["layers"]) == 7
    assert set(content["ranges"]) == {tensor["name"] for tensor in content["plan"]["tensors"]}
    assert "error" not in content


def test_the_digest_is_that_of_the_float_weights(tmp_path: Path) -> None:
    digest = hashlib.sha256()
    torch.manual_seed(0)
    for name, tensor in Residual().state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    delivered(ExportSettings(directory=tmp_path / "b"))
    assert manifest(tmp_path / "b")["fp32_weights_sha256"] is None
    torch.manual_seed(0)
    delivered(ExportSettings(directory=tmp_path / "a"), float_model=Residual())
    assert manifest(tmp_path / "a")["fp32_weights_sha256"] == digest.hexdigest()


def test_the_state_is_that_before_biases_were_rounded(tmp_path: Path) -> None:
    prepared = residual()
    with torch.no_grad():
        prepared.get_submodule("head").bias.add_(1e-5)
    before = prepared.get_submodule("head").bias.detach().clone()
    delivered(ExportSettings(directory=tmp_path / "torch"), prepared)
    assert torch.equal(prepared.get_submodule("head").bias, before), "rounded without need"
    assert manifest(tmp_path / "torch")["bias_rounding"] is None
    delivered(ExportSettings(["onnx"], directory=tmp_path / "onnx"), prepared)
    assert torch.equal(load_prepared_state(tmp_path / "onnx")["head.bias"], before)
    assert not torch.equal(prepared.get_submodule("head").bias, before)
    assert float(manifest(tmp_path / "onnx")["bias_rounding"]["sqnr_db"]) > 20


def test_biases_that_few_bits_round_far_are_told(tmp_path: Path) -> None:
    def noted(kinds: list[str], least: float) -> list[str]:
        two = residual(QConfig(weight=WeightSpec(-1, 1), activation=ActivationSpec(0, 3)))
        with torch.no_grad():
            two.get_submodule("hidden").bias.add_(0.3)
        gate = Gate(min_sqnr_db=least, on_failure="warn")
        notes = delivered(ExportSettings(kinds, gate, directory=tmp_path / "int8"), two).notes
        return [note for note in notes if note.startswith("biases: onnx rounds them to multiples of input scale")]

    assert noted(["torch", "onnx"], 0) == []
    moved = float(manifest(tmp_path / "int8")["bias_rounding"]["sqnr_db"])
    assert moved < 60, "at 8 bits it is more"
    (note,) = noted(["torch", "onnx"], moved + 1)
    assert f"SQNR {moved:.1f} dB is below {moved + 1:.1f} dB" in note
    assert noted(["torch"], moved + 1) == []


def test_what_fails_the_gate_is_left_out_and_the_rest_kept(tmp_path: Path) -> None:
    settings = ExportSettings(["torch", {"faulty": {"layer": "second"}}, "pt2"], directory=tmp_path / "int8")
    done = delivered(settings)
    assert list(done.models) == ["torch", "pt2"]
    assert done.failures == [done.failures[0]]
    assert done.failures[0].startswith("'faulty' does not compute what was trained: SQNR ")
    assert "they first differ at second (" in done.failures[0]
    files = {file.name for file in (tmp_path / "int8").iterdir()}
    assert files == {"int8.pt", "int8.pt2", "prepared.pt", "lq.json"}
    content = manifest(tmp_path / "int8")
    assert list(content["artifacts"]) == ["torch", "pt2"]
    assert content["parity"]["faulty"]["passed"] is False
    assert content["parity"]["faulty"]["first_layer"].startswith("second (")
    assert content["error"] == done.failures[0]
    with pytest.raises(RuntimeError, match=r"they first differ at second .* everything else is in .*int8\."):
        done.raise_failures()
    load(tmp_path / "int8", "pt2")
    load_prepared_state(tmp_path / "int8")


def test_a_batch_that_is_larger_than_all_others_is_compared_too(tmp_path: Path) -> None:
    done = delivered(ExportSettings(["torch", {"faulty": {"most": 8}}], directory=tmp_path / "int8"))
    assert list(done.models) == ["torch"]
    (failure,) = done.failures
    assert "is below 25.0 dB, for a larger batch, of 17 samples; they first differ at" in failure
    assert done.parity["torch"].samples == done.parity["faulty"].samples == 80, "it is not counted"


def test_warn_keeps_what_fails_the_gate(tmp_path: Path) -> None:
    settings = ExportSettings([{"faulty": {"layer": "head"}}], Gate(on_failure="warn"), tmp_path / "int8")
    with pytest.warns(
        UserWarning, match=r"lq: 'faulty' does not compute what was trained: .*; they first differ at head \("
    ):
        done = delivered(settings)
    assert done.failures == []
    assert (tmp_path / "int8" / faulty.FILE).exists()
    assert manifest(tmp_path / "int8")["parity"]["faulty"]["passed"] is False
    load(tmp_path / "int8", "faulty")
    done.raise_failures()


def test_an_exporter_that_fails_leaves_nothing_of_itself(tmp_path: Path) -> None:
    done = delivered(ExportSettings([{"faulty": {"fails": "export"}}, "torch"], directory=tmp_path / "int8"))
    assert done.failures == ["The int8 model could not be exported as 'faulty' (this cannot be exported)"]
    assert {file.name for file in (tmp_path / "int8").iterdir()} == {"int8.pt", "prepared.pt", "lq.json"}
    assert manifest(tmp_path / "int8")["error"] == done.failures[0]
    assert [row["model"] for row in done.rows] == ["fake-quantized", "int8 torch"]


def test_if_all_exporters_fail_the_state_remains(tmp_path: Path) -> None:
    delivered(ExportSettings([{"faulty": {"fails": "export"}}], directory=tmp_path / "int8"))
    load_prepared_state(tmp_path / "int8")
    with pytest.raises(FileNotFoundError, match=r"holds no int8 model, because .* 'faulty' \(this cannot be"):
        load(tmp_path / "int8")


def test_a_full_disk_leaves_the_old_artifact(tmp_path: Path) -> None:
    delivered(ExportSettings(directory=tmp_path / "int8"))
    before = load(tmp_path / "int8")(images(3))
    with pytest.raises(OSError, match="No space left on device"):
        delivered(
            ExportSettings(["torch", {"faulty": {"fails": "disk"}}], directory=tmp_path / "int8"), residual("tensorrt")
        )
    assert torch.equal(load(tmp_path / "int8")(images(3)), before)
    assert [path.name for path in tmp_path.iterdir()] == ["int8"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system where nobody may write")
def test_an_unwritable_directory_is_named() -> None:
    with pytest.raises(PermissionError, match=r"cannot write /proc/lq/int8: no directory can be created in /proc"):
        delivered(ExportSettings(directory=Path("/proc/lq/int8")))


KILLED = """
import sys
from pathlib import Path

import pytest

from lq.deployment.gated_export import gated_export
from lq.deployment.results import Compared
from lq.deployment.settings import ExportSettings
from tests.export import faulty, nets
from tests.export.nets import example_of, images, residual

faulty.register(pytest.MonkeyPatch())
settings = ExportSettings(["torch", {"faulty": {"fails": "killed"}}], directory=Path(sys.argv[1]))
gated_export(residual(), example_of(images(4)), lambda models, keep: Compared(), settings)
"""


def test_a_killed_export_leaves_the_old_artifact(tmp_path: Path) -> None:
    delivered(ExportSettings(directory=tmp_path / "int8"))
    before = load(tmp_path / "int8")(images(3))
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "int8")], capture_output=True, timeout=120)
    assert done.returncode == -9, done.stderr
    left = [file.name for path in tmp_path.iterdir() if path.name != "int8" for file in path.iterdir()]
    assert set(left) == {"prepared.pt", FILE, faulty.FILE}, "it was in the middle"
    assert torch.equal(load(tmp_path / "int8")(images(3)), before)
    delivered(ExportSettings(directory=tmp_path / "int8"))
    assert [path.name for path in tmp_path.iterdir()] == ["int8"]


def test_without_calls_the_example_is_compared(tmp_path: Path) -> None:
    done = gated_export(
        residual(), EXAMPLE, lambda models, keep: Compared(), ExportSettings(directory=tmp_path / "int8")
    )
    assert done.parity["torch"].samples == 4
    assert done.notes == ["without validation results, agreement and SQNR are those of one training batch"]


def test_nothing_is_written_without_a_directory() -> None:
    done = delivered(ExportSettings())
    assert done.directory is None
    x = images(5)
    with torch.no_grad():
        assert sqnr(residual()(x), done.models["torch"](x)) > 40, "the models work nevertheless"


def test_an_order_is_checked_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="unknown exporter 'tflite'"):
        ExportSettings(["tflite"])


def test_without_ranges_every_exporter_says_so(tmp_path: Path) -> None:
    done = delivered(ExportSettings(["torch", "pt2"], directory=tmp_path / "int8"), prepare(Residual()))
    assert [failure.partition("(")[2][:34] for failure in done.failures] == ["No fake quantizer has seen a batch"] * 2


def test_a_rehearsal_fails_before_the_training_does() -> None:
    rehearse(residual(), EXAMPLE, ["torch", "pt2"])
    with pytest.raises(ValueError, match=r"cannot be exported as 'tensorrt', .*symmetric int8.*QATCallback"):
        rehearse(residual(), EXAMPLE, ["tensorrt"])
    with pytest.raises(
        ValueError, match=r"exported as 'faulty', so the run stops before the training: .*this cannot be e"
    ):
        rehearse(residual(), EXAMPLE, [{"faulty": {"fails": "export"}}])


class Turned(nn.Module):
    """Of which a trace may make the batch size a constant, which ``torch.export`` does not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        grid = F.affine_grid(x.mean((2, 3)).unflatten(1, (2, 3)), x.shape, align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


def test_a_rehearsal_runs_several_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = nets.calibrated(Turned(), EXAMPLE)
    rehearse(prepared, EXAMPLE, ["pt2"])
    monkeypatch.setattr(torchscript, "with_traced_sizes", lambda model: model)
    with pytest.raises(ValueError, match="cannot be exported as 'torch', so the run stops before the training"):
        rehearse(prepared, EXAMPLE, ["torch"])


def test_a_rehearsal_compares_shapes() -> None:
    prepared = residual()
    with pytest.raises(
        ValueError, match=r"'faulty', .*: for a batch of 2, its output has shape \(1, 4\) instead of \(2"
    ):
        rehearse(prepared, EXAMPLE, [{"faulty": {"loses": 1}}])


def test_an_older_artifact_stays_if_the_new_one_fails(tmp_path: Path) -> None:
    delivered(ExportSettings(directory=tmp_path / "int8"))
    before = load(tmp_path / "int8")(images(3))
    done = delivered(
        ExportSettings(["torch", {"faulty": {"layer": "second"}}], directory=tmp_path / "int8"), residual("tensorrt")
    )
    assert torch.equal(load(tmp_path / "int8")(images(3)), before)
    assert (done.directory, done.rejected) == (None, tmp_path / "int8.failed")
    assert list(manifest(tmp_path / "int8.failed")["artifacts"]) == ["torch", "faulty"]
    assert f"{tmp_path / 'int8'} still holds the artifact of an earlier run" in done.notes
    with pytest.raises(RuntimeError, match=r"safe; what did not pass is kept in .*int8\.failed\.$"):
        done.raise_failures()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8", "int8.failed"]


def test_what_fails_the_gate_is_kept_beside(tmp_path: Path) -> None:
    done = delivered(ExportSettings(["torch", {"faulty": {"layer": "second"}}], directory=tmp_path / "int8"))
    assert (done.directory, done.rejected) == (tmp_path / "int8", tmp_path / "int8.failed")
    assert list(manifest(tmp_path / "int8.failed")["artifacts"]) == ["faulty"]
    assert "they first differ at second" in manifest(tmp_path / "int8.failed")["error"]
    load_prepared_state(tmp_path / "int8.failed")
    with pytest.raises(RuntimeError, match=r"kept in .*int8\.failed, everything else is in .*int8\.$"):
        done.raise_failures()


def test_files_of_the_users_own_survive(tmp_path: Path) -> None:
    delivered(ExportSettings(directory=tmp_path / "int8"))
    (tmp_path / "int8" / "model.engine").write_text("built for an hour")
    (tmp_path / "int8" / "int8.pt").write_text("edited by hand")
    delivered(ExportSettings(directory=tmp_path / "int8"))
    load(tmp_path / "int8")
    assert (tmp_path / "int8" / "model.engine").read_text() == "built for an hour"
    assert (tmp_path / "int8" / "int8.pt.kept-1").read_text() == "edited by hand"


def test_of_two_runs_neither_loses_its_model(tmp_path: Path) -> None:
    first, second = Destination.at(tmp_path / "int8"), Destination.at(tmp_path / "int8")
    delivered(ExportSettings(directory=first))
    before = load(tmp_path / "int8")(images(3))
    done = delivered(ExportSettings(directory=second), residual("tensorrt"))
    assert torch.equal(load(tmp_path / "int8")(images(3)), before)
    assert done.directory == tmp_path / "int8-2"
    assert done.models["torch"].path == tmp_path / "int8-2"
    assert any("another run wrote to" in note for note in done.notes)
    again = delivered(ExportSettings(directory=Destination.at(tmp_path / "int8")), residual("tensorrt"))
    assert again.directory == tmp_path / "int8", "a later run replaces it"


def test_files_that_appeared_during_the_training_cost_no_model(tmp_path: Path) -> None:
    destination = Destination.at(tmp_path / "int8")
    (tmp_path / "int8").mkdir()
    (tmp_path / "int8" / "notes.txt").write_text("mine")
    assert delivered(ExportSettings(directory=destination)).directory == tmp_path / "int8-2"
    assert (tmp_path / "int8" / "notes.txt").read_text() == "mine"


def test_a_process_that_cannot_be_started_is_not_the_models_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise WorkerError("a fresh process could not be started: no room for it")

    monkeypatch.setattr(Worker, "run", broken)
    done = delivered(ExportSettings(directory=tmp_path / "int8"))
    assert done.failures == []
    assert any("torch: it was compared in the process of the training, because a fresh" in note for note in done.notes)
    load(tmp_path / "int8")


def test_a_file_that_cannot_be_loaded_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(place: Path, kind: str, *args: Any) -> Int8Model:
        if kind == "pt2":
            raise ValueError("no such engine here")
        return load(place, kind, *args)

    monkeypatch.setattr("lq.deployment.delivery.load", fails)
    deployment = delivered(ExportSettings(["torch", "pt2"], Gate(), Destination(tmp_path / "int8")))
    assert list(deployment.models) == ["torch"]
    assert deployment.failures == ["'pt2' was written, but cannot be loaded (no such engine here)"]
    assert list(manifest(tmp_path / "int8")["artifacts"]) == ["torch"]


class TwoHeads(torch.nn.Module):
    """The second output is farther from the files than the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = (torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.stem(x).relu()
        return {"first": self.first(y), "second": self.second(y)}


def test_every_output_has_to_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(32, 8)
    prepared = as_graph(calibrated(prepare(TwoHeads(), "portable", (x,)), x), ((x,), {}))
    real = faulty_run(monkeypatch)
    settings = ExportSettings(["torch"], Gate(), Destination(tmp_path / "int8"))
    deployment = gated_export(prepared, ((x,), {}), lambda models, keep: Compared(), settings)
    assert real == ["torch"]
    assert "in the output of shape (32, 8)" in deployment.failures[0]


def calibrated(prepared: torch.nn.Module, x: torch.Tensor) -> torch.nn.Module:
    calibrate(prepared, [x], show_progress=False)
    return prepared


def faulty_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let files compute something else for the second output."""
    seen: list[str] = []

    def run(worker: Worker, directory: Path, kind: str, calls: Any) -> Any:
        seen.append(kind)
        model = load(directory, kind)
        outputs = [comparable(model(*args, **kwargs)) for args, kwargs in calls]
        return [(first, second * 1.5) for first, second in outputs]

    monkeypatch.setattr(Worker, "run", run)
    return seen
