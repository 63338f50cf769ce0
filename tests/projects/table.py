"""Outcomes as JSON lines, and as the page of the documentation."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version

from .case import Outcome

COMMAND = "python -m tests.projects all --reuse-torch --markdown docs/projects.md"

INTRODUCTION = """\
# Modules of other projects

Generated from its test runs by

```
{command}
```

Do not edit. torch {torch}, Lightning {lightning}, Python {python}, {machine}, CPU only.

Each row is a `LightningModule` from the project or its documentation, with random weights and small synthetic data. It
is trained for a few epochs in float, and then for a few more with `QATCallback` in the Trainer. Nothing else is
changed; the row names arguments of the callback if its defaults were not enough. The metric is the one that the module
logs in its own `validation_step`. After a few dozen samples it does not say how good such a network can get. It only
shows whether the int8 file gives the same results as the trained model: compare "int8" with "fake", the trained model
with fake quantization. "FP32" is the module before QAT trained it further. "Share" is the share of the
multiply-accumulates that runs in int8.

The command creates an environment for each project, installs what its file in `tests/projects` requires, and runs it
there. Without `--reuse-torch`, it installs torch in each of them. `--list` names the projects.
"""

TITLES = ("project", "module", "target", "share", "own figure", "FP32", "fake", "int8", "SQNR", "gate")


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
    """The page: versions, table, what failed, notes."""
    head = INTRODUCTION.format(
        command=COMMAND,
        torch=version("torch"),
        lightning=version("lightning"),
        python=platform.python_version(),
        machine=platform.machine(),
    )
    working = sum(outcome.works for outcome in outcomes)
    lines = [head, f"{working} of {len(outcomes)} pass the gate and have both figures.", "", *table(outcomes)]
    lines += _list("What does not work", ((o, o.error or o.gate) for o in outcomes if not o.works))
    lines += _list("Remarks", ((o, o.note) for o in outcomes if o.note))
    return "\n".join(lines) + "\n"


def table(outcomes: Iterable[Outcome]) -> list[str]:
    """The rows, in Markdown."""
    return [_row(TITLES), _row(["---"] * len(TITLES)), *(_row(_cells(outcome)) for outcome in outcomes)]


def _cells(outcome: Outcome) -> list[str]:
    module = f"`{outcome.case}`" + (f", `QATCallback({outcome.arguments})`" if outcome.arguments else "")
    reached = outcome.share is not None
    return [
        f"{outcome.project} {outcome.version}".strip(),
        module,
        (f"`{outcome.target}`" if outcome.target else "the module itself") if reached else "",
        "" if outcome.share is None else f"{outcome.share:.0%}",
        f"`{outcome.metric}`" if outcome.metric else "",
        _figure(outcome.fp32),
        _figure(outcome.fake),
        _figure(outcome.int8),
        "" if outcome.sqnr_db is None else f"{outcome.sqnr_db:.1f} dB",
        outcome.gate if outcome.gate == "passed" else "failed" if outcome.gate else "not reached",
    ]


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
