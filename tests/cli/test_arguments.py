"""What a run or a checkpoint knows need not be typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lq.cli.arguments import completed, config_of, subcommand_first, typed_arguments

SOURCE = """
class Base:
    def __init__(self, width, lr=0.1): ...

class Net(Base):
    def __init__(self, depth, kind="plain", **kwargs): ...
"""
NET = ["--model", "mine_to_complete.Net"]
EASY, WANTING = ["--model", "torch.nn.ReLU"], ["--model", "torch.nn.Linear"]  # which demands arguments


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_to_complete.py").write_text(SOURCE)
    hyperparameters = {"depth": 3, "width": 4, "kind": "other", "lr": 0.5}
    torch.save({"state_dict": {}, "hyper_parameters": hyperparameters}, tmp_path / "float.ckpt")
    return str(tmp_path / "float.ckpt")


def test_what_a_class_demands_comes_from_the_checkpoint(checkpoint: str) -> None:
    given = ["--ckpt_path", checkpoint, *NET]
    option, content, *rest = completed("ptq", given)
    assert option == "--config"
    assert json.loads(content)["model"]["init_args"] == {"depth": 3, "width": 4}
    assert rest == given


def test_what_is_typed_or_configured_does_not(checkpoint: str, tmp_path: Path) -> None:
    given = [f"--ckpt_path={checkpoint}", *NET, "--model.depth", "5", "--model.init_args.width=1"]
    assert completed("ptq", given) == given
    (tmp_path / "my.yaml").write_text(
        f"model: {{class_path: mine_to_complete.Net, init_args: {{depth: 2, width: 2}}}}\nckpt_path: {checkpoint}\n"
    )
    given = ["-c", str(tmp_path / "my.yaml")]
    assert completed("ptq", given) == given


def test_the_data_have_hyperparameters_too(checkpoint: str) -> None:
    torch.save({"hyper_parameters": {}, "datamodule_hyper_parameters": {"width": 2}}, checkpoint)
    given = ["--ckpt_path", checkpoint, "--data", "mine_to_complete.Base"]
    data = {"class_path": "mine_to_complete.Base", "init_args": {"width": 2}}
    assert completed("test", given) == ["--config", json.dumps({"data": data}), *given]
    assert completed("test", [*given, "--data.width", "3"]) == [*given, "--data.width", "3"]


def test_values_that_no_configuration_can_hold_are_left_out(checkpoint: str) -> None:
    torch.save({"hyper_parameters": {"depth": torch.ones(2), "width": 1}}, checkpoint)
    given = ["--ckpt_path", checkpoint, *NET]
    assert completed("ptq", given) == given


def test_the_settings_of_a_run_are_those_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "version_0"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("model: nothing.Net\n")
    found = run / "config.yaml"
    for given in (["--ckpt_path", f"{run}/checkpoints/last.ckpt"], ["--artifact", f"{run}/int8"]):
        assert completed("bench", given) == ["--config", str(found), *given]
        assert completed("bench", [*given, *EASY]) == [*given, *EASY]
        assert completed("fit", given) == given, "a fit has settings of its own"
    assert f"settings of {found}" in capsys.readouterr().err
    assert config_of((run / "checkpoints" / "last.ckpt").as_uri()) == config_of(None, (run / "int8").as_uri()) == found
    assert config_of(str(tmp_path / "elsewhere.ckpt")) is None


def test_arguments_that_are_typed() -> None:
    assert typed_arguments(["--model.optimizer.lr", "1", "--model.help", "--data.x", "2"]) == {"optimizer"}


def test_a_run_of_a_command_line_with_one_class_wants_its_name(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "version_0"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("model: {depth: 3, width: 4}\ndata: {size: 2}\n")
    given = ["--ckpt_path", f"{run}/checkpoints/last.ckpt"]
    with pytest.raises(ValueError, match=r"config\.yaml has the arguments of a module, but not its class.*add --model"):
        completed("export", given)
    assert completed("bench", ["--artifact", f"{run}/int8"]) == ["--artifact", f"{run}/int8"]
    assert "settings of" not in capsys.readouterr().err
    config = ["--config", str(run / "config.yaml")]
    assert completed("export", [*config, *NET])[:3] == ["--model=mine_to_complete.Net", *config]
    assert completed("export", [*config, *NET, "--data", "mine.Data"])[:2] == [f"--model={NET[1]}", "--data=mine.Data"]


@pytest.mark.parametrize("option", ["--ckpt_path", "--artifact"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, option: str) -> None:
    missing = str(tmp_path / "lsat.ckpt")
    with pytest.raises(FileNotFoundError, match=r"there is no .*lsat\.ckpt"):
        completed("bench", [option, missing])
    assert completed("bench", [option, missing, *EASY]) == [option, missing, *EASY]
    if option == "--ckpt_path":  # rather than that the class demands what it would hold
        with pytest.raises(FileNotFoundError, match=r"there is no .*lsat\.ckpt"):
            completed("fit", [option, missing, *WANTING])
    for subcommand, name in (("validate", "best"), ("fit", "last"), ("bench", "memory://run/x.ckpt")):
        assert completed(subcommand, ["--ckpt_path", name, *WANTING]) == ["--ckpt_path", name, *WANTING]
    assert completed("bench", [option, "memory://run/int8"]) == [option, "memory://run/int8"]


def test_what_a_class_demands_comes_from_the_float_checkpoint_of_a_report(checkpoint: str, tmp_path: Path) -> None:
    given = ["--float_ckpt_path", checkpoint, *NET]
    wanted = {"depth": 3, "width": 4}
    assert json.loads(completed("report", given)[1])["model"]["init_args"] == wanted
    torch.save({"hyper_parameters": {"depth": 7}}, tmp_path / "qat.ckpt")
    both = completed("report", [*given, "--ckpt_path", str(tmp_path / "qat.ckpt")])
    assert json.loads(both[1])["model"]["init_args"] == {**wanted, "depth": 7}, "the one of the run comes first"


def test_options_before_the_subcommand_are_its_own(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("model: mine.Net\n")
    given = ["--config", str(file), "fit", "--model.width", "3"]
    assert subcommand_first(given, "fit") == ["fit", "--config", str(file), "--model.width", "3"]
    assert subcommand_first(["fit", *NET], "fit") == ["fit", *NET]
    file.write_text("fit: {model: mine.Net}\n")
    assert subcommand_first(given, "fit") == given


def test_a_class_stands_before_its_arguments(checkpoint: str) -> None:
    late = ["--model.width=3", "--model.depth", "2", *NET, "--data", "mine.Data", "--data.size", "2"]
    assert completed("fit", late) == [f"--model={NET[1]}", *late]
    early = [*NET, "--model.width", "3", "--model.depth", "2"]
    assert completed("fit", early) == early


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02PK", r"my\.yaml is no text: give a YAML file.*A checkpoint is a --ckpt_path"),
        (b"model: {class_path: a\ndata: [", r"my\.yaml cannot be read: .*line 2"),
        (b"", r"my\.yaml holds no settings: give a YAML file"),
        (b"- a\n- b", r"my\.yaml holds no settings: give a YAML file"),
    ],
)
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "my.yaml").write_bytes(content)
    for subcommand in ("fit", "export"):
        with pytest.raises(ValueError, match=message):
            completed(subcommand, ["--config", str(tmp_path / "my.yaml")])
