"""The verbs behind `lq export` and `lq bench`, on a checkpoint of a tiny run and through the command line."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torchmetrics
import yaml
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lq.analysis import study
from lq.analysis.resume import ResultFile
from lq.callback import QATCallback
from lq.cli.trainer import QATTrainer
from lq.export.artifact import load
from lq.qconfig import QConfig
from lq.specs import WeightSpec
from tests.tiny import (
    Late,
    Tiny,
    keeper,
    make_data,
    make_net,
    make_trainer,
    qat,
    quicken_deployment,
    train_loader,
    val_loader,
)


class WithData(Tiny):
    """Brings its own validation data."""

    def val_dataloader(self) -> Any:
        return val_loader()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, QATCallback]:
    """A checkpoint of a QAT run, and its callback."""
    callback, checkpoint = qat(), keeper(tmp_path / "kept")
    make_trainer(tmp_path, callback, checkpoint, max_epochs=1).fit(Tiny(), train_loader(), val_loader())
    return Path(checkpoint.last_model_path), callback


def quiet_trainer(tmp_path: Path, *callbacks: Any) -> QATTrainer:
    return QATTrainer(
        accelerator="cpu", callbacks=list(callbacks), logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip


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


def test_bench_prints_and_writes(
    tmp_path: Path, trained: tuple[Path, QATCallback], capsys: pytest.CaptureFixture[str]
) -> None:
    deployment = trained[1].deployment
    assert deployment is not None
    out = tmp_path / "bench.json"
    quiet_trainer(tmp_path).bench(
        Tiny(), artifact=str(deployment.directory), batch_sizes=[1, 2], min_time=0.01, compile=False, json_file=str(out)
    )
    rows = json.loads(out.read_text())["rows"]
    assert {row["model"] for row in rows} == {"fp32 eager", "fp32 frozen", "fp32 fused", "int8 torch"}
    assert {row["batch_size"] for row in rows} == {1, 2}
    assert "int8 torch" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--artifact"):
        quiet_trainer(tmp_path).bench(Tiny())


def test_analyze_prints_and_writes(
    tmp_path: Path, trained: tuple[Path, QATCallback], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "analysis"
    quiet_trainer(tmp_path).analyze(WithData(), ckpt_path=str(trained[0]), out=str(out))
    assert sorted(path.name for path in out.iterdir()) == [
        "analysis.json", "sensitivity.png", "sqnr-all_but_one.json", "sqnr.png"
    ]  # fmt: skip
    found = json.loads((out / "analysis.json").read_text())
    assert [row["layer"] for row in found["sensitivity"]] == ["0", "5"]
    assert {row["metric"] for row in found["sensitivity"]} == {"sqnr_db"}
    assert "share of" in capsys.readouterr().out


def test_analyze_goes_on_where_it_was_broken_off(
    tmp_path: Path, trained: tuple[Path, QATCallback], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"ckpt_path": str(trained[0]), "by": "metric", "direction": "one"}
    quiet_trainer(tmp_path).analyze(WithData(), out=str(tmp_path / "a"), **arguments)
    tried: list[Any] = []
    monkeypatch.setattr(ResultFile, "add", lambda *args: tried.append(args))
    quiet_trainer(tmp_path).analyze(WithData(), out=str(tmp_path / "a"), **arguments)
    assert tried == []
    rows = json.loads((tmp_path / "a" / "analysis.json").read_text())["sensitivity"]
    assert {(row["metric"], row["direction"]) for row in rows} == {("accuracy", "one")}


class WithAllData(WithData):
    def train_dataloader(self) -> Any:
        return train_loader()


def test_analyze_finds_a_planted_layer_of_a_float_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = WithAllData()
    with torch.no_grad():
        planted.model[1].bias[0] = -100.0  # behind the ReLU, the 16 inputs of channel 0 are 0 in float
        planted.model[5].weight[:, :16] = 1000.0
    torch.save({"state_dict": planted.state_dict()}, tmp_path / "float.ckpt")
    per_tensor = QConfig(weight=WeightSpec(-127, 127, per_channel=False))
    trainer = quiet_trainer(tmp_path, QATCallback(qconfig=per_tensor))
    trainer.analyze(WithAllData(), ckpt_path=str(tmp_path / "float.ckpt"), out=str(tmp_path / "a"))
    rows = json.loads((tmp_path / "a" / "analysis.json").read_text())["sensitivity"]
    assert max(rows, key=lambda row: row["harm"])["layer"] == "5"
    assert "\n  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": 0}, "limit=0 must be at least 1 batch"),
        ({"direction": "both"}, "direction='both' is unknown"),
        ({"calibration": 0}, r"limit=0 must be at least 1 batch"),
        ({"ckpt_path": "nowhere.ckpt"}, "there is no checkpoint nowhere.ckpt"),
    ],
)
def test_analyze_refuses(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        quiet_trainer(tmp_path).analyze(WithAllData(), out=str(tmp_path / "a"), **arguments)


def test_analyze_starts_anew_for_other_weights_and_more_batches(
    tmp_path: Path, trained: tuple[Path, QATCallback]
) -> None:
    trainer, out = quiet_trainer(tmp_path), str(tmp_path / "a")
    trainer.analyze(WithAllData(), ckpt_path=str(trained[0]), out=out, batches=1)
    first = json.loads((tmp_path / "a" / "sqnr-all_but_one.json").read_text())
    trainer.analyze(WithAllData(), ckpt_path=str(trained[0]), out=out, batches=2)
    trainer.analyze(WithAllData(), out=out, calibration=1)
    last = json.loads((tmp_path / "a" / "sqnr-all_but_one.json").read_text())
    assert last["key"]["model"] != first["key"]["model"]
    assert last["results"].keys() == first["results"].keys() == {"0", "5"}


class OwnLayout(L.LightningModule):
    """Without forward; its batches are dicts with more than the model takes."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_net()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.model(batch["image"]), batch["label"]))

    def train_dataloader(self) -> Any:
        x, y = make_data().tensors
        return DataLoader(
            [{"image": a, "label": b, "index": i} for i, (a, b) in enumerate(zip(x, y, strict=True))], batch_size=8
        )  # type: ignore[arg-type]

    val_dataloader = train_dataloader


def test_data_are_given_to_the_target_as_the_users_step_gives_them(tmp_path: Path) -> None:
    quiet_trainer(tmp_path).analyze(OwnLayout(), out=str(tmp_path / "a"))
    assert (tmp_path / "a" / "analysis.json").is_file()
    done = quiet_trainer(tmp_path).ptq(OwnLayout(), batch_norm=True)
    assert done.results["torch"].keys() == {"val_loss", "accuracy"}


@pytest.fixture
def quick_study(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The real study, with a short look at the clock; what it was given and what it found."""
    pytest.importorskip("matplotlib")  # of its page
    seen: list[Any] = []

    def quick(*given: Any) -> Any:
        *others, options = given
        hurried = replace(options.compare, seconds=0.01)
        seen.extend([given, study(*others, replace(options, compare=hurried, batches=1))])
        return seen[-1]

    monkeypatch.setattr("lq.cli.report.study", quick)
    return seen


class Scaling(OwnLayout):
    """Whose images become what the network wants on their way to the step."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "image": batch["image"] * 100}


def test_report_judges_what_the_users_step_gives_to_the_target(tmp_path: Path, quick_study: list[Any]) -> None:
    module = Scaling()
    quiet_trainer(tmp_path).report(module, out=str(tmp_path / "page.html"), batches=2, calibration=1)
    (_, train, test, *_), findings = quick_study
    assert (len(train), len(test)) == (1, 2)
    assert torch.equal(train[0].inputs[0][0], 100 * make_data().tensors[0][:8])
    with torch.no_grad():
        x, y = torch.cat([s.inputs[0][0] for s in test]), torch.cat([s.labels for s in test])
        scores = module.model.eval()(x)
    accuracy, loss = float((scores.argmax(1) == y).float().mean()), float(F.cross_entropy(scores, y))
    assert findings.comparison[0]["metrics"] == pytest.approx({"accuracy": accuracy, "val_loss": loss})
    assert all("val_loss" in row["metrics"] for row in findings.comparison)
    assert "Judged on 2 batches" in (tmp_path / "page.html").read_text()


@pytest.mark.filterwarnings("ignore:lq. the float model reaches")  # with weights of its own
def test_a_checkpoint_is_read_once(
    tmp_path: Path, trained: tuple[Path, QATCallback], quick_study: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Any] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda file, **how: reads.append(str(file)) or load(file, **how))
    monkeypatch.chdir(trained[0].parent)
    path = trained[0].name
    trainer, module = quiet_trainer(tmp_path), WithAllData()
    trainer.report(module, ckpt_path=path, out=str(tmp_path / "page.html"))
    assert [row["model"] for row in quick_study[-1].comparison][-2:] == ["QAT, fake-quantized", "QAT int8"]
    trainer.export(WithAllData(), ckpt_path=path)
    trainer.analyze(WithAllData(), ckpt_path=path, out=str(tmp_path / "a"), batches=1)
    assert reads.count(path) == 3


class AskedError(Exception):
    pass


def study_only_asks(float_model: Any, train: Any, test: Any, qconfig: Any, qat: Any, *_: Any) -> None:
    """In the place of the study, which takes its time."""
    raise AskedError(f"{type(float_model).__name__} {type(qat).__base__.__name__}")


class LateWithAllData(Late):
    train_dataloader, val_dataloader = WithAllData.train_dataloader, WithAllData.val_dataloader


class TwoLoaders(WithAllData):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)

    def val_dataloader(self) -> Any:
        return [val_loader(), val_loader()]


def test_analyze_judges_on_batches_of_every_loader(
    tmp_path: Path, trained: tuple[Path, QATCallback], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(prepared: Any, samples: Any, *given: Any) -> None:
        raise AskedError(f"{len(samples)} samples, {given[-1].limit} used")

    monkeypatch.setattr("lq.cli.analyze.analyze_layers", ask)
    with pytest.raises(AskedError, match="4 samples, 4 used"):
        quiet_trainer(tmp_path).analyze(TwoLoaders(), ckpt_path=str(trained[0]), batches=2)


def test_a_module_may_build_its_layers_in_configure_model(
    tmp_path: Path, trained: tuple[Path, QATCallback], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, path = quiet_trainer(tmp_path), str(trained[0])
    torch.save({"state_dict": Tiny().state_dict()}, tmp_path / "float.ckpt")
    done = trainer.export(LateWithAllData(), ckpt_path=path)
    assert done.results["fp32"].keys() == {"val_loss", "accuracy"}
    trainer.ptq(LateWithAllData(), ckpt_path=str(tmp_path / "float.ckpt"))
    trainer.analyze(LateWithAllData(), out=str(tmp_path / "a"))
    monkeypatch.setattr("lq.cli.report.study", study_only_asks)
    with pytest.raises(AskedError, match="Sequential GraphModule"):
        trainer.report(LateWithAllData(), ckpt_path=path)
    trainer.bench(LateWithAllData(), artifact=str(done.directory), batch_sizes=[1], min_time=0.01, compile=False)


def test_analyze_by_a_metric_needs_one_that_fits(tmp_path: Path) -> None:
    undecided = torchmetrics.MeanMetric()
    with pytest.raises(ValueError, match="MeanMetric does not say whether higher is better"):
        quiet_trainer(tmp_path, QATCallback(metric=undecided)).analyze(WithAllData(), by="metric", out=str(tmp_path))


# Lightning says so whenever a checkpoint is loaded into a new version directory.
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_command_line(run_lq: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "digits" / "qat.yaml"
    config = yaml.safe_load(recipe.read_text())
    config["trainer"] |= {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "log_every_n_steps": 1}
    config["trainer"]["callbacks"][0]["init_args"]["schedule"] = {"start": 0}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(config))
    run_lq("fit", "--config", "few.yaml")
    run = tmp_path / "runs" / "digits" / "version_0"
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    given = ["--config", run / "config.yaml"]
    run_lq("export", *given, "--ckpt_path", checkpoint, "--exporters", "[torch, {pt2: {}}]", "--export_dir", "out")
    assert sorted(load(tmp_path / "out").manifest["artifacts"]) == ["pt2", "torch"]
    run_lq("bench", *given, "--artifact", "out", "--compile", "false", "--min_time", 0.01, "--batch_sizes", "[1]")
    assert "int8 pt2" in capsys.readouterr().out
    run_lq("analyze", *given, "--ckpt_path", checkpoint, "--batches", 1, "--out", "layers")
    assert (tmp_path / "layers" / "analysis.json").is_file()
    assert "instead of" in (out := capsys.readouterr().out) or "nothing" in out
