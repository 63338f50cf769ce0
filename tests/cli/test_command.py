import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lq.cli import main
from lq.cli.errors import find_own_error

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
        ({"model": {"width": 0}}, "width must be an integer of at least 1, got 0."),
    ],
)
def test_errors_of_ours_are_one_line(run_lq, config, capsys, changes, message):
    with pytest.raises(SystemExit) as exit_:
        run_lq("fit", "--config", config(**changes))
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert f"lq: error: {message}" in error
    assert "Traceback" not in error


def test_debug_shows_the_traceback(run_lq, config, monkeypatch):
    monkeypatch.setenv("LQ_DEBUG", "1")
    with pytest.raises(ValueError, match="only 1797 digits"):
        run_lq("fit", "--config", config(data={"val_size": 5000}))


def test_errors_of_others_keep_their_traceback(run_lq, config):
    with pytest.raises(Exception, match="max_epochs") as caught:
        run_lq("fit", "--config", config(trainer={"max_epochs": -7}))
    assert find_own_error(caught.value) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--model.widht", "3"], "Option 'widht' is not accepted"),
        (["fit", "--config", "nothing.yaml"], "File does not exist: '"),
        (["train"], "train"),
        ([], "subcommand"),
    ],
)
def test_parser_errors_are_not_hidden_behind_the_usage(run_lq, config, capsys, arguments, message):
    if "--model.widht" in arguments:
        arguments = [*arguments, "--config", config()]
    with pytest.raises(SystemExit) as exit_:
        run_lq(*arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "usage:" not in error


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
    for verb in ("fit", "validate", "test", "predict"):
        assert f"    {verb} " in result.stdout


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


def test_modules_in_the_working_directory_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine_here.py").write_text("import lightning as L\nclass Net(L.LightningModule): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])  # as for an installed script
    monkeypatch.setattr(sys, "argv", ["lq", "fit", "--model", "mine_here.Net", "--print_config"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "mine_here.Net" in capsys.readouterr().out
