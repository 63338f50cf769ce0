"""What the documentation shows is executed, or at least exists."""

import re
from pathlib import Path

import lightning as L
import pytest
import yaml

from lq.data import DigitsDataModule
from lq.models import DigitsClassifier

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("recipes/**/*.md")),
]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(page.read_text()) if language in languages]


def test_the_readme_has_python_to_run():
    assert blocks(ROOT / "README.md", "python")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """The blocks of a page run one after the other; `L`, `module` and `datamodule` are the reader's own."""
    monkeypatch.chdir(tmp_path)
    names = {"L": L, "module": DigitsClassifier(width=4), "datamodule": DigitsDataModule(batch_size=16)}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_yaml_blocks_parse(page):
    for block in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(block), dict)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_recipes_and_targets_that_are_named_exist(page):
    text = page.read_text()
    for recipe in re.findall(r"recipes/[\w/]+\.yaml", text):
        assert (ROOT / recipe).is_file(), recipe
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE):
        assert target in targets, target
