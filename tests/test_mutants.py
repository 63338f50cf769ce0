"""What `python -m tests.mutants` makes of a tiny module."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import mutants
from tests.mutants import HUNG, KILLED, SURVIVED, Coverage, Mutant, covered, mutants_of, outcome_of, table

SOURCE = b'''"""A room."""

LIMIT = 8  # of what fits


def fits(number: int, least: int = 0) -> bool:
    """Whether it does; -1 does not.

    >>> fits(6)
    True
    """
    if not isinstance(number, int):
        raise ValueError(f"{number + 1} is no integer")
    return least <= number < LIMIT and number != 5


def last(values: list[int]) -> int:
    place = 0
    while place + 1 < len(values):
        place += 1
    return values[place]
'''
TESTS = """
from lq_room import fits, last


def test_fits():
    assert fits(7)
    assert not fits(8)
    assert not fits(-1)


def test_last():
    assert last([1, 2, 3]) == 3
"""


# A package whose function hides the module that it is from.
PACKAGE = {
    "pyproject.toml": '[tool.pytest.ini_options]\naddopts = "--import-mode=importlib"\n',
    "lq_hidden/__init__.py": "from lq_hidden.double import double as double\n",
    "lq_hidden/double.py": 'def double(x):\n    """\n    >>> double(2)\n    4\n    """\n    return 2 * x if x else 0\n',
    "test_hidden.py": "import lq_hidden\n\nFOUR = lq_hidden.double(2)\n\n\ndef test_double():\n    assert FOUR == 4\n",
}


def found(was: str, becomes: str) -> Mutant:
    (mutant,) = [m for m in mutants_of(SOURCE, "lq_room.py") if (m.was, m.becomes) == (was, becomes)]
    return mutant


def test_what_is_changed() -> None:
    changes = {(m.line, m.was, m.becomes) for m in mutants_of(SOURCE, "lq_room.py")}
    assert {
        (3, "8", "9"), (3, "8", "(7)"), (6, "0", "1"), (12, "not isinstance(number, int)", "True"),
        (12, "not isinstance(number, int)", "(isinstance(number, int))"), (14, "number != 5", "(number == 5)"),
        (14, "least <= number < LIMIT", "(least < number < LIMIT)"), (19, "place + 1", "(place - 1)"),
        (14, "least <= number < LIMIT and number != 5", "(number != 5)"), (20, "place += 1", "place -= 1"),
        (21, "return values[place]", "return None"),
    } <= changes  # fmt: skip
    assert not {line for line, _, _ in changes} & {1, *range(7, 12), 13}, "documentation and errors stay"
    for mutant in mutants_of(SOURCE, "lq_room.py"):
        compile(mutant.of(SOURCE), "mutant", "exec")


def trial(folder: Path) -> dict[str, str]:
    """What becomes of some mutants, and of tests that fail anyway."""
    (folder / "lq_room.py").write_bytes(SOURCE)
    (folder / "test_room.py").write_text(TESTS)
    (folder / "test_wrong.py").write_text("def test_wrong():\n    assert False\n")
    files = ["lq_room.py", "test_room.py"]
    coverage, outcomes = Coverage(str(folder)), {}
    for _ in range(2):  # the second time nothing is left to run
        coverage.add(files, folder)
    executed = coverage.lines[str(folder / "lq_room.py"), 21]
    assert executed == ["test_room.py::test_last"]
    assert [name.partition("::")[2] for name in coverage.seconds] == ["test_fits", "test_last", "lq_room.fits"]
    for was, becomes, seconds in CHANGES:
        mutant = found(was, becomes)
        tests = coverage.of(mutant, str(folder / mutant.path), files)
        # All have to run where a line runs in the import; the function's doctest asks for its line, too.
        assert len(tests) == {3: 3, 14: 2}.get(mutant.line, 1)
        assert coverage.of(mutant, str(folder / mutant.path), files[1:]) == [t for t in tests if t.startswith("test_")]
        outcomes[becomes] = outcome_of(mutant, tests, seconds, folder)
    for name, text in PACKAGE.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    hidden = "lq_hidden/double.py"
    (mutant,) = [m for m in mutants_of((folder / hidden).read_bytes(), hidden) if m.becomes == "True"]
    coverage.add([hidden, "test_hidden.py"], folder)
    tests = [*coverage.of(mutant, str(folder / hidden), [hidden]), "test_hidden.py::test_double"]
    assert len(tests) == 2
    outcomes["hidden"] = outcome_of(mutant, tests, 60.0, folder)
    with pytest.raises(RuntimeError, match=r"(?s)fail on the unchanged code.*assert False"):
        covered(["test_wrong.py"], str(folder), folder)
    return outcomes


CHANGES = (
    ("least <= number < LIMIT", "(least < number < LIMIT)", 60.0),
    ("8", "9", 60.0),
    ("place + 1 < len(values)", "False", 60.0),
    ("place += 1", "place -= 1", 3.0),
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="mutants live in forked processes")
def test_one_survives_two_are_killed_and_one_hangs(tmp_path: Path) -> None:
    # In a fresh process: forking one that has threads may hang.
    command = [sys.executable, "-m", "tests.test_mutants", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(mutants.ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=mutants.ROOT, env=environment, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    outcomes = json.loads(done.stdout)
    assert outcomes.pop("hidden") == SURVIVED, "no test asks for 0 here either"
    # No test asks for 0; the last one goes through the negative numbers.
    assert list(outcomes.values()) == [SURVIVED, KILLED, KILLED, HUNG]


def test_what_is_known_is_not_tried_again(tmp_path: Path) -> None:
    some = mutants.chosen(["lq/core/weight.py", "lq/conversion"], 4, seed=1)
    assert some == mutants.chosen(["lq/core/weight.py", "lq/conversion"], 4, seed=1)
    assert len(some) == 4
    (line,) = {mutant.line for mutant in mutants.chosen([f"{some[0].path}:{some[0].line}"], None, 0)}
    assert line == some[0].line
    results = tmp_path / "results.jsonl"
    results.write_text(
        "".join(json.dumps([m.key, KILLED]) + "\n" for m in some[1:]) + json.dumps([some[0].key, SURVIVED])
    )
    outcomes = mutants.run(some, results, again=False)
    assert list(outcomes.values()) == [SURVIVED, KILLED, KILLED, KILLED]
    report = table(some, outcomes)
    assert report.startswith("tried 4: killed 3, hung 0, survived 1\n")
    assert f"| {some[0].path}:{some[0].line} | `{some[0].was}` | `{some[0].becomes}` |" in report


def test_every_room_has_its_tests() -> None:
    assert mutants.files_for("lq/core/weight.py")[:2] == ["lq/core/weight.py", "tests/core/test_weight.py"]
    assert "tests/callback/test_ranges.py" in mutants.files_for("lq/core/weight.py")
    assert mutants.files_for("lq/config/schedule.py")[1] == "tests/config/test_schedule.py"
    assert "tests/analysis/test_auto_exclude.py" in mutants.files_for("lq/analysis/auto_exclude.py")
    for tests in mutants.ROOMS.values():
        assert all((mutants.ROOT / place).exists() for place in tests)


if __name__ == "__main__":
    print(json.dumps(trial(Path(sys.argv[1]))))
