"""Outcomes as JSON lines, and as the page of the documentation."""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version

from .case import Outcome

COMMAND = "python -m tests.projects all --reuse-torch --markdown docs/projects.md"

INTRODUCTION = """\
# Modules of other projects

This page says whether lq works with `LightningModule`s that other projects wrote. {working} of {all} do: the int8 file
passes the parity gate, and the validation of the project runs with it.

Each row is a `LightningModule` from a project or its documentation, with random weights and small synthetic data. It
is trained for a few epochs in float, and then for a few more with `QATCallback` in the Trainer. Nothing else is
changed, except for the arguments of the callback that are listed [below](#arguments-and-notes), where its defaults were
not enough.

- *target*: the part that was quantized.
- *in int8*: the share of the multiply-accumulates that runs in int8.
- *metric*: what the module logs in its own `validation_step`, for three models: *FP32*, before QAT; *fake-quantized*,
  after it; *int8*, the file. After a few dozen samples a metric does not say how good such a network can get. It shows
  whether the file gives the same results as the trained model: compare the last two.
- *SQNR*: how close the outputs of the file are to those of the fake-quantized model.

The modules were tested with torch {torch}, Lightning {lightning}, Python {python}, {machine}, CPU only. Do not edit
this page. The following command creates an environment for each project, installs what its file in `tests/projects`
requires, runs it there, and writes the page. Without `--reuse-torch`, it installs torch in each of them. `--list` names
the projects.

```
{command}
```
"""

TITLES = ("project", "module", "target", "in int8", "metric", "FP32", "fake-quantized", "int8", "SQNR")


def as_line(outcome: Outcome) -> str:
    """One line of JSON."""
    return json.dumps(asdict(outcome))


def from_lines(text: str) -> list[Outcome]:
    """Outcomes of such lines."""
    return [Outcome(**json.loads(line)) for line in text.splitlines() if line.strip()]


def replaced(earlier: Iterable[Outcome], new: Outcome) -> list[Outcome]:
    """All of them in order, without those that the new one takes the place of."""

    def is_replaced(old: Outcome) -> bool:
        whole = "all" in (old.case, new.case)  # of a project that could not be installed or imported
        return old.project == new.project and (whole or old.case == new.case)

    return sorted([*(old for old in earlier if not is_replaced(old)), new], key=lambda row: (row.project, row.case))


def page(outcomes: Sequence[Outcome]) -> str:
    """The page: what works, table, what failed, arguments, notes."""
    head = INTRODUCTION.format(
        working=sum(outcome.works for outcome in outcomes),
        all=len(outcomes),
        command=COMMAND,
        torch=version("torch"),
        lightning=version("lightning"),
        python=platform.python_version(),
        machine=platform.machine(),
    )
    lines = [head, *table(outcomes)]
    lines += _list("What does not work", ((o, o.error or o.gate) for o in outcomes if not o.works))
    lines += _list("Arguments and notes", ((o, _about(o)) for o in outcomes if o.arguments or o.note))
    return "\n".join(lines) + "\n"


def table(outcomes: Iterable[Outcome]) -> list[str]:
    """The rows, in Markdown."""
    return [_row(TITLES), _row(["---"] * len(TITLES)), *(_row(_cells(outcome)) for outcome in outcomes)]


def _cells(outcome: Outcome) -> list[str]:
    reached = outcome.share is not None
    return [
        f"{outcome.project} {outcome.version}".strip(),
        _module(outcome.case),
        (f"`{outcome.target}`" if outcome.target else "all of it") if reached else "",
        "" if outcome.share is None else f"{outcome.share:.0%}",
        f"`{outcome.metric}`" if outcome.metric else "",
        _figure(outcome.fp32),
        _figure(outcome.fake),
        _figure(outcome.int8),
        _decibels(outcome.sqnr_db),
    ]


def _module(case: str) -> str:
    """The name of the class as code, and what is said of it as text."""
    name, _, rest = case.partition(" ")
    return f"`{name}` {rest}".strip()


def _decibels(value: float | None) -> str:
    return "" if value is None else "equal" if value == math.inf else f"{value:.1f} dB"


def _about(outcome: Outcome) -> str:
    arguments = f"`QATCallback({outcome.arguments})`. " if outcome.arguments else ""
    return arguments + sentences(outcome.note)


def sentences(note: str) -> str:
    """What the table's author and lq said of a row, which are joined by semicolons, as sentences.

    Example:
        >>> sentences("After few images a detector finds little.; the exported model takes one image; others fail")
        'After few images a detector finds little. The exported model takes one image. Others fail.'
    """
    parts = (part.strip().rstrip(".") for part in note.split("; "))
    return " ".join(f"{_capital(part)}." for part in parts if part)


def _capital(text: str) -> str:
    """With a capital, unless it begins with code, or with a name before a colon."""
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+ ", text) else text


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _list(title: str, entries: Iterable[tuple[Outcome, str]]) -> list[str]:
    lines = [f"- **{outcome.project}, {outcome.case}**: {_plain(text)}" for outcome, text in entries]
    return ["", f"## {title}", "", *lines] if lines else []


def _plain(text: str) -> str:
    """On one line, so that it stays one entry, and without the folders of the machine that it ran on."""
    return re.sub(r"(?<![\w/])/\S*?/(?=site-packages/|int8)", "", " ".join(text.split()))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
