"""What somebody mistypes is told in a line, with the nearest name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

NET = ["--model", "to_err.Net"]
QAT = ["fit", *NET, "--model.width", "3", "--trainer.callbacks", "lq.QATCallback"]
SOURCE = """
import lightning as L

class Net(L.LightningModule):
    def __init__(self, width: int, lr: float = 0.1):
        super().__init__()

class Data(L.LightningDataModule):
    pass

def net():
    return Net(8)
"""


@pytest.fixture
def told(run_lq: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "to_err.py").write_text(SOURCE)
    (tmp_path / "lacks_a_package.py").write_text("import no_such_package\n")
    (tmp_path / "does_not_parse.py").write_text("class Net(\n")

    def tell(*args: str, config: str | None = None) -> str:
        if config is not None:
            (tmp_path / "my.yaml").write_text(config)
            args = (*args, "--config", "my.yaml")
        with pytest.raises(SystemExit) as ended:
            run_lq(*args)
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error.removesuffix("(--debug shows where it was raised)\n").strip()

    return tell


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["exprot"], "there is no subcommand 'exprot'; did you mean 'export'?"),
        (["exprot", "--out", "report"], "there is no subcommand 'exprot'; did you mean 'export'?"),
        (["docter"], "there is no subcommand 'docter'; did you mean 'doctor'?"),
        (["doctor", "--quik"], "lq doctor has no option --quik; did you mean '--quick'?"),
        (["ptq", "--ckpt_pth", "x.ckpt"], "lq ptq has no option --ckpt_pth; did you mean '--ckpt_path'?"),
        (["fit", "--trainer.max_epoch=3"],
         "lq fit has no option --trainer.max_epoch; did you mean '--trainer.max_epochs'?"),
        (["fit", "to_err.Net"], "lq fit takes only options, but got 'to_err.Net'; lq fit --help lists them"),
        (["export"], "lq export needs a model: --config runs/.../config.yaml, or --model my_module.Net"),
        (["fit", *NET], "to_err.Net needs width: --model.width VALUE, or a --ckpt_path whose hyperparameters hold it"),
        (["fit", *NET, "--model.widht", "3"], "to_err.Net has no argument 'widht'; did you mean 'width'?"),
        (["fit", *NET, "--model.width", "many"], "--model.width 'many' must be int"),
        (["fit", "--model", "to_err.Nett"], "--model: module to_err has no 'Nett'; did you mean 'to_err.Net'?"),
        (["fit", "--model", "to_er.Net"], "--model: there is no module to_er; did you mean 'to_err.Net'?"),
        (["fit", "--model", "to_err.net"], "--model: to_err.net is no LightningModule"),
        (["fit", "--model", "to_err.Data"], "--model: to_err.Data is no LightningModule"),
        (["fit", "--trainer.callbacks", "lq.QATCalback"],
         "--trainer.callbacks: module lq has no 'QATCalback'; did you mean 'lq.QATCallback'?"),
        (["fit", "--optimizer", "Adm"],
         "--optimizer: 'Adm' is no import path of a class, such as my_module.Net; did you mean 'Adam'?"),
        (["fit", "--model", "to_err:Net"],
         "--model: 'to_err:Net' is no import path of a class, such as my_module.Name"),
        (["ptq", *NET, "--model.width", "3", "--exporters", "onnx,torch"],
         "--exporters 'onnx,torch' must be a list or null: --exporters '[onnx,torch]'"),
        ([*QAT, "--trainer.callbacks.exporters", "onnx"],
         "--trainer.callbacks.exporters 'onnx' must be a list: --trainer.callbacks.exporters '[onnx]'"),
        ([*QAT, "--trainer.callbacks.gate", "0.9"],
         "--trainer.callbacks.gate '0.9' must be a mapping of the settings of Gate"),
        ([*QAT, "--trainer.callbacks.int8_every_n_epochs", "x"],
         "--trainer.callbacks.int8_every_n_epochs 'x' must be int or null"),
        (["analyze", *NET, "--model.width", "3", "--by", "mteric"], "--by 'mteric' must be 'sqnr' or 'metric'"),
        ([*QAT, "--trainer.callbacks.log_ranges", "all"],
         "--trainer.callbacks.log_ranges 'all' must be 'summary' or 'tensors' or null"),
        (["fit", "--trainer.max_epochs", "x"], "--trainer.max_epochs 'x' must be int or null"),
    ],
)  # fmt: skip
def test_in_the_command_line(told: Any, args: list[str], message: str) -> None:
    assert told(*args) == f"lq: error: {message}"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("model: {class_path: to_err.Nett}", "--model: module to_err has no 'Nett'; did you mean"),
        ("model: {class_path: to_err.Net, init_args: {widht: 8}}", "has no argument 'widht'; did you mean 'width'?"),
        ("modell: {class_path: to_err.Net}", "did you mean 'model'?"),
        ("trainer: {max_epoch: 3}", "there is no setting 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        ("just text", "--config my.yaml holds no settings: give a YAML file of settings"),
    ],
)  # fmt: skip
def test_in_a_configuration(told: Any, config: str, message: str) -> None:
    assert message in told("fit", config=config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("distill: {layers: [0], layer_weight: much}", "--trainer.callbacks.distill.layer_weight 'much' must be float"),
        ("distill: {layers: 0}", "--trainer.callbacks.distill.layers '0' must be a list"),
        ("distill: {layer: [a]}", "lq.Distillation has no argument 'layer'; did you mean 'layers'?"),
        ("gate: {batches: many}", "--trainer.callbacks.gate.batches 'many' must be int"),
        ("qconfig: {exclude: [0]}", "--trainer.callbacks.qconfig.exclude '0' must be str"),
        ("distil: {temperature: 2.0}", "lq.QATCallback has no argument 'distil.temperature'; did you mean 'distill'?"),
    ],
)  # fmt: skip
def test_in_settings_of_the_callback(told: Any, settings: str, message: str) -> None:
    callback = f"{{class_path: lq.QATCallback, init_args: {{{settings}}}}}"
    model = "{class_path: to_err.Net, init_args: {width: 3}}"
    config = f"model: {model}\ntrainer: {{callbacks: [{callback}]}}\n"
    assert told("fit", config=config) == f"lq: error: {message}"


def test_faults_of_a_module_are_those_that_python_finds(told: Any, tmp_path: Path) -> None:
    assert "does_not_parse cannot be imported: SyntaxError: '(' was never closed" in told(
        "fit", "--model", "does_not_parse.Net"
    )
    lacking = told("fit", "--model", "lacks_a_package.Net")
    assert "lacks_a_package cannot be imported: ModuleNotFoundError: No module named 'no_such_package'" in lacking
    assert str(tmp_path / "lacks_a_package.py") in lacking


def test_a_file_of_a_command_line_with_one_class_names_none(told: Any) -> None:
    wanted = "lq: error: 'model' has settings, but names no class: add --model my_module.Net"
    assert told("fit", config="model: {width: 3}") == wanted
