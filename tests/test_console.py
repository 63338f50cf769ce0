import re

import lightning as L
import pytest

from lq.console import BatchCounter, LineProgress, format_line
from lq.data import DigitsDataModule
from lq.models import DigitsClassifier


def fit(tmp_path, progress, epochs=2):
    trainer = L.Trainer(
        max_epochs=epochs,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[progress],
        limit_train_batches=3,
    )
    trainer.fit(DigitsClassifier(width=2), DigitsDataModule())


def test_one_line_an_epoch_with_its_validation(tmp_path, capsys):
    fit(tmp_path, LineProgress())
    out = capsys.readouterr().out
    assert "\r" not in out
    first, second = out.splitlines()
    pattern = r"epoch {}/2 \| \d+\.\d s \| train/loss \S+ \| val/accuracy \S+ \| val/loss \S+"
    assert re.fullmatch(pattern.format(1), first)
    assert re.fullmatch(pattern.format(2), second)


def test_a_long_epoch_is_reported_on_the_way(tmp_path, capsys):
    fit(tmp_path, LineProgress(every=1e-9), epochs=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines] == [
        "epoch 1, batch 1/3",
        "epoch 1, batch 2/3",
        "epoch 1, batch 3/3",
        "epoch 1/1",
    ]


def test_disabled_is_silent(tmp_path, capsys):
    progress = LineProgress()
    progress.disable()
    fit(tmp_path, progress)
    assert capsys.readouterr().out == ""


def test_doubles_of_a_metric_are_left_out():
    metrics = {"b": 2.0, "a": 1.0, "a_step": 1.0, "a_epoch": 1.0}
    assert format_line("x", metrics, 0.0) == "x | 0.0 s | a 1 | b 2"


@pytest.mark.parametrize("every", [0, -1.0, float("nan")])
def test_bad_interval(every):
    with pytest.raises(ValueError, match="every must be above 0 seconds"):
        LineProgress(every)


def test_a_counter_prints_lines_in_a_log_and_nothing_when_it_shall_not(capsys):
    with BatchCounter("comparing", float("inf"), every=1e-9) as counter:
        counter.advance()
    assert capsys.readouterr().out == "comparing, batch 1/?\n"
    with BatchCounter("comparing", 3, every=1e-9, shown=False) as counter:
        counter.advance()
    assert capsys.readouterr().out == ""
