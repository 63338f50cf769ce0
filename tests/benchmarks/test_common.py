"""The arithmetic of the comparison, and that works take turns."""

import json
import time
from itertools import groupby

import pytest
import torch

from benchmarks._common import TIMING_COLUMNS, Timing, compare, label, parse, parser, quartiles, report, take_turns

CPU = torch.device("cpu")


def test_ratios_are_taken_pair_by_pair():
    # The machine was twice as slow in the second round; the ratios do not notice.
    timing = Timing.of([0.002, 0.004, 0.003], baseline=[0.001, 0.002, 0.001])
    assert timing == Timing(ms=3.0, low=2.0, ratio=2.0, high=2.5)


def test_quartiles_of_one_value_are_that_value():
    assert quartiles([1.5]) == (1.5, 1.5, 1.5)


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        Timing.of([1.0], baseline=[1.0, 2.0])


def test_works_take_turns_and_every_second_round_runs_backwards():
    calls = []
    take_turns({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3, device=CPU)
    order = "".join(name for name, _ in groupby(calls))
    # a b c to find the number of repeats, then abc cba abc with neighbours of the same name in one
    assert order == "abc" + "abcbabc"


def test_a_work_that_takes_twice_as_long_has_about_ratio_two():
    options = parse(parser("", rounds=5), [])
    works = {"one": lambda: time.sleep(0.01), "two": lambda: time.sleep(0.02)}
    timing = compare(works, dict.fromkeys(works, "one"), options)["two"]
    assert 1.5 < timing.ratio < 2.5  # what sleep() promises is only "not less"
    assert timing.ms >= 20


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--rounds", "-1"], ["--rounds", "many"]])
def test_numbers_that_make_no_sense_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        parse(parser("", rounds=5), arguments)
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse(parser("", rounds=5), ["--device", "cuda"])
    assert "sees no GPU; leave the option out" in capsys.readouterr().err


def test_report_prints_whole_lines_and_writes_the_figures(capsys, tmp_path):
    file = tmp_path / "new" / "figures.json"
    options = parse(parser("", rounds=5), ["--json", str(file)])
    rows = [
        {"what": "a", "by": "a long name " * 12, "ms": 12.345, "ratio": 1.0, "q1": 1.0, "q3": 1.0},
        {"what": "a", "by": "other", "ms": 0.001, "ratio": 0.00123, "q1": 0.0011, "q3": 0.5},
        {"what": "b", "by": "absent"},
    ]
    report("Title", (label("what", "what"), label("by", "by"), *TIMING_COLUMNS), rows, options)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "Title"
    cells = [line.split() for line in lines]
    assert ["a", *["a", "long", "name"] * 12, "12.35", "1.00", "1.00", "to", "1.00"] in cells
    assert ["other", "0.00", "0.0012", "0.0011", "to", "0.50"] in cells
    assert ["b", "absent", "-", "-", "-"] in cells
    written = json.loads(file.read_text())
    assert written["rows"] == rows
    assert written["settings"] == {"device": "cpu", "threads": 1, "rounds": 5}
    assert written["machine"]["torch"] == torch.__version__
