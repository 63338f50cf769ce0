"""What ``--help`` prints."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lq.cli.subcommands import OF_LIGHTNING, OWN_SUBCOMMANDS

MARKUP = re.compile(r"`|\*\*\w|\.\. \w+::")


def shown(run_lq: Any, capsys: pytest.CaptureFixture[str], *args: str) -> list[str]:
    with pytest.raises(SystemExit) as ended:
        run_lq(*args)
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if MARKUP.search(line)]
    return lines


@pytest.mark.parametrize("subcommand", [*OF_LIGHTNING, *OWN_SUBCOMMANDS])
def test_a_verb_fits_on_a_screen_and_its_own_options_come_first(
    run_lq: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, subcommand: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = shown(run_lq, capsys, subcommand, "--help")
    assert 10 < len(lines) <= 55
    own, trainer = (next(i for i, line in enumerate(lines) if f"  {o}" in line) for o in ("--ckpt_path", "--trainer."))
    assert own < trainer


def test_all_options_are_behind_help_all(run_lq: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(run_lq, capsys, "export", "--help-all")
    named = ("--export_dir", "--trainer.gradient_clip_val", "--optimizer")
    places = [next(i for i, line in enumerate(lines) if line.startswith(f"  {option} ")) for option in named]
    assert places == sorted(places)
    assert len(lines) > 200


def test_the_help_of_a_class_is_plain(run_lq: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(run_lq, capsys, "fit", "--trainer.callbacks.help", "lq.QATCallback")
    assert any("--trainer.callbacks.qconfig QCONFIG" in line for line in lines)
    assert len(lines) < 150, "no list of a hundred metrics"
    assert shown(run_lq, capsys, "fit", "--model", "lq.models.DigitsClassifier", "--model.help") == shown(
        run_lq, capsys, "fit", "--model.help", "lq.models.DigitsClassifier"
    )


def test_the_overview_names_every_verb(run_lq: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(run_lq, capsys, "--help")
    assert {*OF_LIGHTNING, *OWN_SUBCOMMANDS, "doctor"} <= {line.split()[0] for line in lines if line.startswith("  ")}
