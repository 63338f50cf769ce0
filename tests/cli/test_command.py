import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lq.deployment.results import Deployment

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path):
    """A float run of a moment, changed by `config(section={...})`."""

    def write(**changes):
        content = {
            "trainer": {
                "accelerator": "cpu",
                "max_epochs": 1,
                "limit_train_batches": 2,
                "limit_val_batches": 1,
                "limit_test_batches": 1,
                "log_every_n_steps": 1,
                "logger": {
                    "class_path": "lightning.pytorch.loggers.CSVLogger",
                    "init_args": {"save_dir": "runs", "name": "x"},
                },
            },
            "model": {"class_path": "lq.models.DigitsClassifier", "init_args": {"width": 2}},
            "data": {"class_path": "lq.data.DigitsDataModule", "init_args": {}},
        }
        for section, values in changes.items():
            inner = content[section]
            (inner if section == "trainer" else inner["init_args"]).update(values)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


# Lightning says so whenever a checkpoint is loaded into a new version directory.
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_fit_then_test_from_its_checkpoint(run_lq, config, tmp_path, capsys):
    run_lq("fit", "--config", config())
    (checkpoint,) = (tmp_path / "runs" / "x" / "version_0" / "checkpoints").glob("*.ckpt")
    saved = yaml.safe_load((tmp_path / "runs" / "x" / "version_0" / "config.yaml").read_text())
    assert saved["seed_everything"] == 0
    assert "epoch 1/1 |" in capsys.readouterr().out
    run_lq("test", "--config", config(), "--ckpt_path", checkpoint)
    assert "test/accuracy" in capsys.readouterr().out
    run_lq("validate", "--config", config(), "--ckpt_path", checkpoint)
    assert "val/accuracy" in capsys.readouterr().out
    run_lq("predict", "--config", config(), "--ckpt_path", checkpoint)


def test_saved_config_launches_the_same_run(run_lq, config, tmp_path):
    run_lq("fit", "--config", config())
    run_lq("fit", "--config", tmp_path / "runs" / "x" / "version_0" / "config.yaml")
    first, second = ((tmp_path / "runs" / "x" / f"version_{n}" / "metrics.csv").read_text() for n in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"val_size": 5000}}, "val_size + test_size is 5360, but there are only 1797 digits"),
        ({"model": {"optimizer": {"lr": -1.0}}}, "optimizer lr must be above 0, got -1.0."),
        ({"model": {"width": 0}}, "width=0 must be at least 1; write e.g. width=16."),
    ],
)
def test_errors_of_ours_are_one_line(run_lq, config, capsys, changes, message):
    with pytest.raises(SystemExit) as exit_:
        run_lq("fit", "--config", config(**changes))
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert f"lq: error: {message}" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("option", [[], ["--debug"]])
def test_debug_shows_the_traceback(run_lq, config, monkeypatch, option):
    monkeypatch.setenv("LQ_DEBUG", "0" if option else "1")
    with pytest.raises(ValueError, match="only 1797 digits"):
        run_lq("fit", "--config", config(data={"val_size": 5000}), *option)


def test_settings_that_lightning_refuses_are_one_line(run_lq, config, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_lq("fit", "--config", config(trainer={"max_epochs": -7}))
    assert exit_.value.code == 2
    assert "max_epochs" in capsys.readouterr().err


def test_errors_of_the_users_code_keep_their_traceback(run_lq, config, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("of the user's")

    monkeypatch.setattr("lq.models.DigitsClassifier.training_step", broken)
    with pytest.raises(ZeroDivisionError):
        run_lq("fit", "--config", config())


def test_a_run_that_fails_ends_with_another_status(run_lq, config, capsys, monkeypatch):
    monkeypatch.setattr("lq.cli.lightning_cli.LQCLI.__init__", lambda *_: Deployment(failures=["bad"]).raise_failures())
    with pytest.raises(SystemExit) as exit_:
        run_lq("fit")
    assert exit_.value.code == 1
    assert "lq: error: bad" in capsys.readouterr().err


def test_without_a_verb_the_verbs_are_shown(run_lq, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_lq()
    assert exit_.value.code == 2
    assert "usage: lq COMMAND" in capsys.readouterr().err


def test_the_version(run_lq, capsys):
    run_lq("--version")
    assert re.fullmatch(r"lq \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_users_own_progress_bar_is_kept(run_lq, config, capsys):
    bar = {
        "class_path": "lightning.pytorch.callbacks.TQDMProgressBar",
        "init_args": {"refresh_rate": 0},
    }
    run_lq("fit", "--config", config(trainer={"callbacks": [bar]}))
    assert "epoch 1/1 |" not in capsys.readouterr().out


def test_no_progress_when_none_is_wanted(run_lq, config, capsys):
    run_lq("fit", "--config", config(trainer={"enable_progress_bar": False}))
    assert "epoch 1/1 |" not in capsys.readouterr().out


def test_module_is_the_same_command():
    environment = {**os.environ, "COLUMNS": "100"}
    result = subprocess.run(
        [sys.executable, "-m", "lq", "--help"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith("usage: lq ")
    assert "\n  lq fit --config recipes/digits/qat.yaml\n" in result.stdout
    for subcommand in ("fit", "validate", "test", "predict"):
        assert f"\n  {subcommand} " in result.stdout


def test_a_log_file_holds_no_carriage_returns(config, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", "lq", "fit", "--config", str(config())],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=True,
    )
    output = result.stdout + result.stderr
    assert b"\r" not in output
    assert b"\x1b" not in output
    assert b"Warning" not in output
    assert b"Tip:" not in output


def test_modules_in_the_working_directory_are_found_and_take_no_librarys_place(tmp_path: Path) -> None:
    """An installed script has its own folder at the start of its search path, ``python -m`` the working directory."""
    (tmp_path / "mine_here.py").write_text("import lightning as L\nclass Net(L.LightningModule): pass\n")
    (tmp_path / "queue.py").write_text("raise SystemExit('the wrong queue')\n")
    script = tmp_path / "bin" / "lq"
    script.parent.mkdir()
    script.write_text("import sys\nfrom lq.cli import main\nsys.exit(main())\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command in ([script], ["-m", "lq"]):
        result = subprocess.run(
            [sys.executable, *command, "fit", "--model", "mine_here.Net", "--print_config"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert "mine_here.Net" in result.stdout
