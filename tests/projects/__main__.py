"""Lightning projects of others under lq: ``python -m tests.projects NAME``, each in an environment of its own.

A NAME is a project, ``project/case``, or ``all``. A line of JSON is printed for each case, and kept beside the
environments, so that the page can be written from several runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .case import Outcome
from .catalogue import PROJECTS, requirements_of
from .environment import ROOT, InstallationError, environment
from .table import as_line, from_lines, page, replaced

CASE_SECONDS = 1200


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; returns 1 if a case does not work."""
    options = _options(arguments)
    if options.list:
        print("\n".join(f"{name}: {', '.join(requirements_of(name))}" for name in PROJECTS))
        return 0
    options.environments = options.environments.absolute()
    kept, works = options.environments / "results.jsonl", True
    kept.parent.mkdir(parents=True, exist_ok=True)
    for name in PROJECTS if "all" in options.names else options.names:
        for outcome in _run(name, options):
            print(as_line(outcome), flush=True)
            earlier = from_lines(kept.read_text()) if kept.exists() else []
            kept.write_text("".join(as_line(row) + "\n" for row in replaced(earlier, outcome)))
            works = works and outcome.works
    if options.markdown is not None:
        options.markdown.write_text(page(from_lines(kept.read_text())))
    return int(not works)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.projects", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="name the projects and what they require")
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "projects", help="default: %(default)s")
    parser.add_argument("--reuse-torch", action="store_true", help="see the packages of the running interpreter")
    parser.add_argument("--install-seconds", type=float, default=300, help="per project; default: %(default)s")
    parser.add_argument("--markdown", type=Path, help="write the page of the documentation")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name.partition("/")[0] not in (*PROJECTS, "all")]
    if unknown or not (options.names or options.list):
        parser.error(f"name projects, of {', '.join(PROJECTS)}, or all; got {unknown}")
    return options


def _run(name: str, options: argparse.Namespace) -> Iterator[Outcome]:
    """The outcomes of a project, or of one case of it."""
    project, _, only = name.partition("/")
    try:
        python = environment(
            options.environments / project,
            requirements_of(project),
            reuse=options.reuse_torch,
            seconds=options.install_seconds,
        )
        cases = [only] if only else json.loads(_ask(python, project))
    except (InstallationError, RuntimeError) as error:
        yield Outcome(project, "", only or "all", error=str(error))
        return
    for case in cases:
        try:
            yield from from_lines(_ask(python, project, case))
        except RuntimeError as error:
            yield Outcome(project, "", case, error=str(error))


def _ask(python: Path, *arguments: str) -> str:
    """The last line that a trial prints; all that it says besides is kept beside the environment.

    Raises:
        RuntimeError: if it dies or takes too long.
    """
    command = [str(python), "-m", "projects.trial", *arguments]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    log = python.parents[1] / f"{'-'.join(arguments).replace(' ', '_')}.log"
    with log.open("w") as says:
        try:
            done = subprocess.run(
                command,
                cwd=python.parents[1],
                env=variables,
                stdout=subprocess.PIPE,
                stderr=says,
                text=True,
                timeout=CASE_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"took more than {CASE_SECONDS} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        last = log.read_text().strip().splitlines()[-1:]
        raise RuntimeError(f"ended with {done.returncode}: {''.join(last)}")
    return lines[-1]


if __name__ == "__main__":
    sys.exit(main())
