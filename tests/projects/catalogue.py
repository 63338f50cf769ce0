"""The projects, and what their files say before anything is installed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

FOLDER = Path(__file__).parent

PROJECTS = tuple(sorted(path.stem.removeprefix("of_") for path in FOLDER.glob("of_*.py")))


def requirements_of(project: str) -> tuple[str, ...]:
    """What pip has to install: the literal ``REQUIREMENTS`` of the project's file, which is not imported for that.

    Raises:
        ValueError: if the file has none.
    """
    for statement in ast.parse((FOLDER / f"of_{project}.py").read_text()).body:
        if isinstance(statement, ast.Assign) and [ast.unparse(t) for t in statement.targets] == ["REQUIREMENTS"]:
            return tuple(ast.literal_eval(statement.value))
    raise ValueError(f"of_{project}.py does not say what it requires: REQUIREMENTS = (...)")


def distribution_of(project: str) -> str:
    """Name of the package whose version stands in the table: the first requirement."""
    return re.split(r"[\[<>=!~; ]", requirements_of(project)[0])[0]
