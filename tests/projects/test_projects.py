"""The machinery: which projects there are, what their files declare, and the page."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.projects.__main__ import main
from tests.projects.case import Case, Fit, Outcome
from tests.projects.catalogue import PROJECTS, distribution_of, requirements_of
from tests.projects.environment import InstallationError, environment
from tests.projects.table import as_line, from_lines, page, replaced, table

WORKS = Outcome(
    "one", "1.0", "Task", "model", share=0.9, metric="iou", fp32=0.5, int8=0.49, sqnr_db=30.0, gate="passed"
)


def test_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == list(PROJECTS)


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["nothing_of_that_name"])
    assert "transformers" in capsys.readouterr().err


@pytest.mark.parametrize("project", PROJECTS)
def test_a_file_declares_what_it_must(project: str) -> None:
    assert all(isinstance(requirement, str) for requirement in requirements_of(project))
    assert distribution_of(project)
    try:
        module = importlib.import_module(f"tests.projects.of_{project}")
    except ImportError as error:
        pytest.skip(f"only in its own environment: {error}")
    assert module.__doc__
    assert module.CASES
    assert all(isinstance(case, Case) for case in module.CASES)
    assert len({case.name for case in module.CASES}) == len(module.CASES)


def test_arguments_need_a_reason() -> None:
    def build() -> Fit:
        raise NotImplementedError

    with pytest.raises(ValueError, match="need a reason"):
        Case("Task", build, "iou", arguments={"target": "model"})


def test_outcomes_come_back_from_their_lines() -> None:
    outcomes = [WORKS, Outcome("two", "", "all", error="a\nb")]
    assert from_lines("\n".join(map(as_line, outcomes))) == outcomes


def test_works_is_gate_and_figures() -> None:
    assert WORKS.works
    assert not Outcome("one", "1.0", "Task", gate="passed", int8=0.5).works
    assert not Outcome("one", "1.0", "Task", gate="SQNR too low", fp32=0.5, int8=0.5).works


def test_the_page_hides_no_failure() -> None:
    failed = Outcome("two", "2.0", "Other", gate="SQNR 3 dB | too low", fp32=math.nan)
    text = page([WORKS, failed, Outcome("three", "", "all", error="no\nwheel")])
    assert "1 of 3 do" in text
    assert "- **two, Other**: SQNR 3 dB | too low" in text
    assert "- **three, all**: no wheel" in text
    assert len({row.count(" | ") for row in table([WORKS, failed])}) == 1


def test_notes_are_sentences() -> None:
    note = "A detector finds little.; the file takes one image; x.shape[0] leaves it open; torch: fc runs in float"
    given = replace(WORKS, arguments="target='a'", note=note)
    said = "A detector finds little. The file takes one image. x.shape[0] leaves it open. torch: fc runs in float."
    assert f"- **one, Task**: `QATCallback(target='a')`. {said}" in page([given])


def test_a_new_outcome_replaces_the_old_one() -> None:
    broken = Outcome("one", "", "all", error="no network")
    other = Outcome("two", "1.0", "Task")
    assert replaced([broken, other], WORKS) == [WORKS, other]
    assert replaced([WORKS, other], broken) == [broken, other]


def test_an_environment_sees_the_packages_of_this_one_and_says_what_pip_said(tmp_path: Path) -> None:
    python = environment(tmp_path / "good", (), reuse=True, seconds=60)
    assert subprocess.run([python, "-c", "import torchmetrics"]).returncode == 0
    assert Path(sys.executable).parent != python.parent
    with pytest.raises(InstallationError, match="no_such_file"):
        environment(tmp_path / "bad", ("./no_such_file.whl",), reuse=True, seconds=60)
