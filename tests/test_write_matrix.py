"""The generated pages say what their generators say now, and each test of long jobs has words for users."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import write_matrix
from tests.callback import test_long_jobs as long_jobs
from tests.projects import table
from tests.zoo import trial

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("matrix.md", write_matrix.INTRODUCTION),
        ("matrix.md", write_matrix.NOT_RUN),
        ("matrix.md", write_matrix.ZOO_INTRODUCTION),
        ("matrix.md", trial.PUBLISHED),
        ("matrix.md", trial.TITLES),
        ("projects.md", table.INTRODUCTION),
        ("projects.md", f"| {' | '.join(table.TITLES)} |"),
    ],
)
def test_a_page_has_the_text_of_its_generator(page: str, text: str) -> None:
    pattern = ".*?".join(re.escape(piece) for piece in re.split(r"\{\w+\}", text.strip()))
    assert re.search(pattern, (DOCS / page).read_text(), re.DOTALL)


def test_every_test_of_long_jobs_is_in_words() -> None:
    named = [name for words in write_matrix.FEATURES.values() for name in words]
    assert sorted(named) == sorted(long_jobs.FEATURES)
    others = {name for name in vars(long_jobs) if name.startswith("test_")} - {"test_feature"}
    assert others == set(write_matrix.SENTENCES)


def test_only_what_passed_is_said() -> None:
    text = "\n".join(write_matrix.in_words(["test_feature[Timer]", "test_torch_compile[a]", "test_torch_compile[b]"]))
    assert "- **Length of the training**: `Timer`\n" in text
    assert "max_time" not in text
    assert text.count("torch.compile(module)") == 1


def test_runs_are_counted_by_precision() -> None:
    found = {"32-true,a": "", "32-true,b": "ranges differ", "bf16-mixed,a": ""}
    counts = [write_matrix.counted(found, precision) for precision in ("32-true", "bf16-mixed", "bf16-true")]
    assert counts == ["1 of 2", "1 of 1", "not run"]
