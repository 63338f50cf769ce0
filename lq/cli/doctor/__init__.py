"""``lq doctor``: what works on this machine, tried on a tiny model, and what to install for the rest."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console

from lq.cli.doctor.machine import describe
from lq.cli.doctor.outcomes import names_of_trials, rows_of, run_trials
from lq.cli.doctor.tables import print_findings
from lq.cli.import_paths import suggestion

_ABOUT = """What works on this machine, and what to install for the rest. A tiny model goes through every preset and
exporter, in a process of its own; that takes some 20 seconds."""


def main(args: list[str]) -> None:
    """Run the subcommand.

    Args:
        args: of the command line.

    Example:
        >>> import io
        >>> from contextlib import redirect_stdout
        >>> with redirect_stdout(io.StringIO()) as printed:
        ...     main(["--quick", "--json"])
        >>> json.loads(printed.getvalue())["exporters"][0]["name"]
        'torch'
        >>> main(["--fast"])
        Traceback (most recent call last):
            ...
        ValueError: lq doctor has no option --fast; it has --quick and --json
    """
    parser = argparse.ArgumentParser(prog="lq doctor", description=_ABOUT, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="only look at what is installed, and try nothing")
    parser.add_argument("--json", action="store_true", help="print JSON, to be pasted into a bug report")
    chosen, unknown = parser.parse_known_args(args)
    if unknown:
        near = suggestion(unknown[0], ["--quick", "--json"]) or "; it has --quick and --json"
        raise ValueError(f"lq doctor has no option {unknown[0]}{near}")
    with Console(stderr=True).status("trying every preset and exporter on a tiny model"):
        findings = examine(quick=chosen.quick)
    if chosen.json:
        print(json.dumps(findings, indent=2))
    else:
        print_findings(findings)


def examine(quick: bool = False) -> dict[str, Any]:
    """All that ``lq doctor`` finds, as plain data.

    Args:
        quick: only look at what is installed, and try nothing.

    Returns:
        "versions", "cpu", "gpus", "engines", "kernels", "tools", and under "presets" and "exporters" a row each, whose
        "works" is true, false, or null where nothing was tried.

    Example:
        >>> found = examine(quick=True)
        >>> sorted(found)
        ['cpu', 'engines', 'exporters', 'gpus', 'kernels', 'presets', 'tools', 'versions']
        >>> [row["works"] for row in found["exporters"] if row["name"] == "torch"]
        [None]
    """
    return {**describe(), **rows_of({} if quick else run_trials(names_of_trials()))}
