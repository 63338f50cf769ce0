"""``lq export``."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
import torch

from lq.callback import QATCallback
from lq.export.artifact.int8_model import load
from tests.cli.runs import WithAllData, WithData, quiet_trainer
from tests.tiny import Tiny, make_data, make_trainer, train_loader, val_loader


def test_exports_what_the_run_itself_exported(tmp_path: Path, trained: tuple[Path, QATCallback]) -> None:
    path, callback = trained
    done = quiet_trainer(tmp_path).export(WithData(), ckpt_path=str(path), exporters=["torch", "pt2"])
    assert done.directory == path.with_name("last-int8")
    assert callback.deployment is not None
    x = make_data().tensors[0]
    assert torch.equal(load(done.directory)(x), callback.deployment.models["torch"](x))
    assert done.parity.keys() == {"torch", "pt2"}
    assert done.results["torch"] == callback.deployment.results["torch"]
    assert done.results["fp32"] == callback.deployment.results["fp32"]
    manifest = json.loads((done.directory / "lq.json").read_text())
    assert manifest["weights"] == str(path)


def test_the_callback_says_what_and_how(tmp_path: Path, trained: tuple[Path, QATCallback]) -> None:
    callback = QATCallback(exporters=["pt2"])
    done = quiet_trainer(tmp_path, callback).export(
        WithData(), ckpt_path=str(trained[0]), export_dir=str(tmp_path / "elsewhere")
    )
    assert list(done.models) == ["pt2"]
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == ["int8.pt2", "lq.json", "prepared.pt"]


def test_urls_are_paths_or_stores(
    tmp_path: Path, trained: tuple[Path, QATCallback], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    here, store = f"file://{trained[0]}", f"memory://{uuid.uuid4().hex}/int8"
    trainer, x = quiet_trainer(tmp_path), make_data().tensors[0]
    beside = trainer.export(WithData(), ckpt_path=here)
    assert beside.directory == trained[0].with_name("last-int8")
    with caplog.at_level("INFO"):
        done = trainer.export(WithData(), ckpt_path=here, export_dir=store)
    assert done.directory == store
    assert f"lq: artifact in {store}" in caplog.text
    assert torch.equal(load(store)(x), load(trained[0].with_name("last-int8"))(x))
    done = trainer.ptq(WithAllData(), batches=2, export_dir=f"{store}-ptq")
    assert done.directory == f"{store}-ptq"
    trainer.bench(Tiny(), artifact=store, batch_sizes=[1], min_time=0.01, compile=False, json_file="bench.json")
    assert json.loads((tmp_path / "bench.json").read_text())["rows"][-1]["model"] == "int8 torch"
    assert not [path for path in tmp_path.iterdir() if ":" in path.name]
    with pytest.raises(FileNotFoundError, match=r"no checkpoint memory://a/last\.ckpt; give a local file that Model"):
        trainer.export(WithData(), ckpt_path="memory://a/last.ckpt")


def test_export_needs_a_qat_checkpoint(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"needs the checkpoint of a QAT run: --ckpt_path"):
        trainer.export(WithData())
    path = tmp_path / "float.ckpt"
    torch.save({"state_dict": Tiny().state_dict()}, path)
    with pytest.raises(ValueError, match="is a checkpoint of a float model"):
        trainer.export(WithData(), ckpt_path=str(path))
    with pytest.raises(ValueError, match="unknown exporter 'onx'"):
        trainer.export(WithData(), ckpt_path=str(path), exporters=["onx"])


def test_an_artifact_is_exported_again_without_its_checkpoint(
    tmp_path: Path, trained: tuple[Path, QATCallback]
) -> None:
    deployment = trained[1].deployment
    assert deployment is not None
    done = quiet_trainer(tmp_path).export(
        WithData(), ckpt_path=str(deployment.directory), exporters=["pt2"], export_dir=str(tmp_path / "again")
    )
    assert done.results["fake"] == deployment.results["fake"]
    assert done.results["fp32"] == deployment.results["fp32"]
    x = make_data().tensors[0]
    assert torch.allclose(
        load(tmp_path / "again")(x), deployment.models["torch"](x), atol=1e-5
    )  # sums in another order
    again = quiet_trainer(tmp_path).export(WithData(), ckpt_path=str(tmp_path / "again"))
    assert again.directory == tmp_path / "again-int8"


def test_a_module_that_is_the_target_itself(tmp_path: Path) -> None:
    callback = QATCallback(target="", export_dir=str(tmp_path / "first"))
    trainer = make_trainer(tmp_path, callback, max_epochs=1)
    trainer.fit(WithData(), train_loader(), val_loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert callback.deployment is not None
    for given in (tmp_path / "last.ckpt", tmp_path / "first"):
        done = quiet_trainer(tmp_path).export(
            WithData(), ckpt_path=str(given), exporters=["torch"], export_dir=str(tmp_path / "again")
        )
        assert done.results["fake"] == callback.deployment.results["fake"]


class WithHead(WithData):
    """Has weights outside of the quantized part."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = torch.nn.Parameter(torch.ones(1))


def test_what_an_artifact_does_not_hold_is_said(tmp_path: Path, trained: tuple[Path, QATCallback]) -> None:
    deployment = trained[1].deployment
    assert deployment is not None
    with pytest.warns(UserWarning, match="holds no temperature; they stay as WithHead has them"):
        quiet_trainer(tmp_path).export(WithHead(), ckpt_path=str(deployment.directory), export_dir=str(tmp_path / "b"))
    with pytest.raises(ValueError, match=r"not an lq artifact"):
        quiet_trainer(tmp_path).export(WithData(), ckpt_path=str(tmp_path))


def test_without_data_random_inputs_are_compared(
    tmp_path: Path, trained: tuple[Path, QATCallback], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        done = quiet_trainer(tmp_path).export(Tiny(), ckpt_path=str(trained[0]), export_dir=str(tmp_path / "c"))
    assert "compared on random inputs" in caplog.text
    assert done.parity["torch"].passed
    assert done.parity["torch"].samples > 0
    x = make_data().tensors[0]
    assert trained[1].deployment is not None
    assert torch.equal(load(tmp_path / "c")(x), trained[1].deployment.models["torch"](x))
