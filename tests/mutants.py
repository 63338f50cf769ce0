"""Changes the code in small ways, and asks the tests whether they notice.

    python -m tests.mutants [PATH[:LINE] ...] [--sample 120] [--seed 0] [--results FILE] [--again]

A mutant is a module with one small change: another comparison, a condition that is always true, a number that is one
larger. The tests run on it that execute the changed line, of those that mirror the module and some that use its room
from above; one that fails has killed the mutant. A survivor is either equivalent, so that no test could tell it from
the original, or it shows what no test looks at. Results are appended to a file, and a mutant that is in it is not
tried again (with ``--again`` survivors are).

The unchanged code is run first, to learn which test executes which line, and how long it takes. Each mutant lives in a
process that is forked from this one, which has imported PyTorch and the rest, but nothing of lq.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import hypothesis
import pytest

ROOT = Path(__file__).parents[1]
# The rooms, and their tests: those that mirror them, and some of their callers'.
ROOMS = {
    "lq/core": (
        "tests/core", "tests/instrument/test_sites.py", "tests/backends/test_prepare.py",
        "tests/callback/test_ranges.py",
    ),
    "lq/conversion": (
        "tests/conversion", "tests/deployment/test_in_float.py", "tests/export/formats/test_program.py",
        "tests/export/artifact/test_int8_model.py",
    ),
    "lq/config/schedule.py": ("tests/config/test_schedule.py", "tests/callback/test_life.py"),
}  # fmt: skip
HEAVY = (
    "torch", "torch.export", "torch.ao.quantization", "torch._dynamo", "torchvision", "lightning", "torchmetrics",
    "onnx", "onnxscript", "onnxruntime", "torchao", "sklearn", "matplotlib.pyplot", "rich",
    "jsonargparse",
)  # fmt: skip
KILLED, SURVIVED, HUNG = "killed", "survived", "hung"


@dataclass(frozen=True)
class Mutant:
    """One change of one module: the text of a place in it, and what stands there instead."""

    path: str
    line: int
    last_line: int
    start: int
    end: int
    was: str
    becomes: str

    def of(self, source: bytes) -> bytes:
        """The module's source with the change."""
        return source[: self.start] + self.becomes.encode() + source[self.end :]

    @property
    def key(self) -> str:
        """What tells it from others, and from those of another version of the module."""
        return f"{self.path}:{self.line} +{self.start} {self.was} -> {self.becomes}"


# ---- what is changed ---------------------------------------------------------------------------------------------

_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_NAMES = {"min": "max", "minimum": "maximum", "amin": "amax", "any": "all", "zeros": "ones"}
_NAMES |= {b: a for a, b in _NAMES.items()}


def mutants_of(source: bytes, path: str) -> Iterator[Mutant]:
    """Every mutant of a module, in the order of the source."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = set()
    for node in _code(ast.parse(source)):
        for place, becomes in _changes(node):
            start = starts[place.lineno - 1] + place.col_offset
            end = starts[place.end_lineno - 1] + place.end_col_offset
            was = " ".join(source[start:end].decode().split())
            found.add(Mutant(path, place.lineno, place.end_lineno, start, end, was, becomes))
    return iter(sorted(found, key=lambda mutant: (mutant.start, mutant.end, mutant.becomes)))


def _code(node: ast.AST) -> Iterator[Any]:
    """The nodes that compute something: no annotations, docstrings or texts of errors."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or isinstance(node, (ast.JoinedStr, ast.Raise)):
            continue
        for child in value if isinstance(value, list) else [value]:
            is_docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if isinstance(child, ast.AST) and not is_docstring:
                yield from _code(child)


def _changes(node: Any) -> Iterator[tuple[Any, str]]:
    """Nodes, and the code that takes the place of each."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS:
        yield node, _code_of(node, ops=[_SWAPS[type(node.ops[0])](), *node.ops[1:]])
    if isinstance(node, ast.BoolOp):
        yield node, _code_of(node, op=_SWAPS[type(node.op)]())
        for value in node.values:
            yield node, _code_of(node, values=[other for other in node.values if other is not value])
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in _SWAPS:
        yield node, _code_of(node, op=_SWAPS[type(node.op)]())
    if isinstance(node, ast.UnaryOp):
        yield node, _code_of(node.operand)
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield from ((node.test, value) for value in ("True", "False"))
    if isinstance(node, ast.comprehension):
        yield from ((test, "True") for test in node.ifs)
    if isinstance(node, ast.Constant):
        yield from ((node, value) for value in _other_values(node.value))
    if isinstance(node, ast.Return) and not (node.value is None or _is_none(node.value)):
        yield node, "return None"
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield node, "pass"
    if isinstance(node, (ast.Continue, ast.Break)):
        yield node, "break" if isinstance(node, ast.Continue) else "continue"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _NAMES:
        yield node.func, _code_of(node.func, attr=_NAMES[node.func.attr])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _NAMES:
        yield node.func, _NAMES[node.func.id]
    if isinstance(node, ast.arguments):
        defaults = [value for value in [*node.defaults, *node.kw_defaults] if isinstance(value, ast.Constant)]
        yield from ((value, repr(f"not {value.value}")) for value in defaults if isinstance(value.value, str))


def _other_values(value: Any) -> list[str]:
    if isinstance(value, bool):
        return [repr(not value)]
    if isinstance(value, int):
        return [repr(value + 1), f"({value - 1})"]
    return [repr(2 * value), repr(value / 2)] if isinstance(value, float) and value else []


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _code_of(node: Any, **changed: Any) -> str:
    """Code on one line, in parentheses unless it is a statement."""
    new = type(node)(**{**dict(ast.iter_fields(node)), **changed})
    if isinstance(new, ast.BoolOp) and len(new.values) == 1:
        new = new.values[0]
    code = ast.unparse(ast.fix_missing_locations(new))
    return code if isinstance(node, (ast.stmt, ast.Attribute)) else f"({code})"


# ---- the tests ---------------------------------------------------------------------------------------------------


def files_for(path: str) -> list[str]:
    """The module's doctests, the test file that mirrors it, and those of its room."""
    module = Path(path)
    room = next((tests for start, tests in ROOMS.items() if path.startswith(start)), ())
    files = [module, Path("tests", *module.parts[1:-1], f"test_{module.name}")]
    for place in room:
        inside = sorted(file.relative_to(ROOT) for file in (ROOT / place).rglob("test_*.py"))
        files += inside or [Path(place)]
    return [file.as_posix() for file in dict.fromkeys(files) if (ROOT / file).is_file()]


@dataclass
class Coverage:
    """Which test executes which line of the files below a directory, and how long it takes; a plugin of pytest."""

    directory: str
    lines: dict[tuple[str, int], list[str]] = field(default_factory=lambda: defaultdict(list))
    seconds: dict[str, float] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)  # of tests

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Note what this test executes."""
        executed: set[tuple[str, int]] = set()

        def trace(frame: FrameType, event: str, arg: Any) -> Any:
            if not frame.f_code.co_filename.startswith(self.directory):
                return None
            executed.add((frame.f_code.co_filename, frame.f_lineno))
            return trace

        began = time.monotonic()
        sys.settrace(trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.seconds[item.nodeid] = time.monotonic() - began
            for place in executed:
                self.lines[place].append(item.nodeid)

    def of(self, mutant: Mutant, file: str, tests: Sequence[str]) -> list[str]:
        """Tests that execute a mutant's lines, the shorter of a file first; all if the import executes them."""
        places = [(file, line) for line in range(mutant.line, mutant.last_line + 1)]
        order = {name: number for number, name in enumerate(tests)}
        known = {test: order[name] for test in self.seconds if (name := test.partition("::")[0]) in order}
        found = {test for place in places for test in self.lines.get(place, ()) if test in known} or known
        return sorted(found, key=lambda test: (known[test], self.seconds[test]))

    def add(self, tests: Sequence[str], root: Path = ROOT) -> None:
        """Run those files of tests that did not run yet: the modules of a room share most of theirs."""
        # The module itself last: loaded by pytest, it would hide a function that its package has by the same name.
        missing = [name for name in reversed(tests) if name not in self.files]
        if missing:
            new = covered(missing, self.directory, root)
            self.files.update(missing)
            self.seconds |= new.seconds
            for place, found in new.lines.items():
                self.lines[place] += found


def covered(tests: Sequence[str], directory: str, root: Path = ROOT) -> Coverage:
    """Run tests on the unchanged code.

    Raises:
        RuntimeError: if one of them fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "coverage.json")

        def work() -> int:
            coverage = Coverage(directory)
            status = _pytest(tests, root, coverage)
            answer.write_text(json.dumps([list(coverage.lines.items()), coverage.seconds]))
            return status

        if _in_child(work, 3600.0, Path(folder, "log.txt")) not in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
            raise RuntimeError(f"the tests fail on the unchanged code:\n{Path(folder, 'log.txt').read_text()[-3000:]}")
        lines, seconds = json.loads(answer.read_text())
    return Coverage(directory, {(file, line): found for (file, line), found in lines}, seconds)


# ---- running them ------------------------------------------------------------------------------------------------


class _Loader(SourceFileLoader):
    """Loads a module from other code."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec")


@dataclass(frozen=True)
class _Finder:
    """Finds the mutant in the place of its module; a plugin of pytest, whose own finder would come before it."""

    loader: _Loader

    @pytest.hookimpl(tryfirst=True)
    def pytest_load_initial_conftests(self) -> None:
        sys.meta_path.insert(0, self)  # type: ignore[arg-type]
        importlib.import_module(self.loader.name)  # not by pytest, which may do so in another order than the tests

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.loader.name:
            return None
        return importlib.util.spec_from_file_location(name, self.loader.path, loader=self.loader)


def outcome_of(mutant: Mutant, tests: Sequence[str], limit: float, root: Path = ROOT) -> str:
    """Whether one of the tests fails on a mutant; it hangs if they take longer than so many seconds."""
    file, name = root / mutant.path, mutant.path.removesuffix(".py").replace("/", ".")

    def work() -> int:
        return _pytest(tests, root, _Finder(_Loader(name, str(file), mutant.of(file.read_bytes()))))

    status = _in_child(work, limit, Path(os.devnull))
    return HUNG if status is None else KILLED if status else SURVIVED


def _pytest(tests: Sequence[str], root: Path, *plugins: Any) -> int:
    os.chdir(root)
    sys.path.insert(0, str(root))
    # Neither caches nor examples of Hypothesis are left to the next run.
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = folder
        options = [
            "-x",
            "-q",
            "--no-header",
            "--doctest-modules",
            "-p",
            "no:cacheprovider",
            "-o",
            "faulthandler_timeout=0",
        ]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins that are imported already
        return int(pytest.main([*options, *tests], plugins=list(plugins)))


def _in_child(work: Callable[[], int], limit: float, log: Path) -> int | None:
    """The status of what is done in a forked process, ``None`` if it did not end in time."""
    child = os.fork()
    if not child:
        status = 1
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.setpgid(0, 0)
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    until = time.monotonic() + limit
    while time.monotonic() < until:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(code)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)  # with what it has started
    os.waitpid(child, 0)
    return None


# ---- the command -------------------------------------------------------------------------------------------------


def chosen(places: Iterable[str], sample: int | None, seed: int) -> list[Mutant]:
    """Mutants of modules, rooms or lines; some of them at random, in the order of the source."""
    found = []
    for place in places:
        path, _, line = place.partition(":")
        files = sorted((ROOT / path).rglob("*.py")) if (ROOT / path).is_dir() else [ROOT / path]
        for file in files:
            mutants = mutants_of(file.read_bytes(), file.relative_to(ROOT).as_posix())
            found += [mutant for mutant in mutants if not line or mutant.line == int(line)]
    if sample is None or sample >= len(found):
        return found
    return [found[index] for index in sorted(random.Random(seed).sample(range(len(found)), sample))]


def run(mutants: Sequence[Mutant], results: Path, again: bool) -> dict[str, str]:
    """What became of each, by its key; what is known already is read from the file."""
    known: dict[str, str] = {}
    if results.exists():
        known = dict(json.loads(line) for line in results.read_text().splitlines())
    results.parent.mkdir(parents=True, exist_ok=True)
    coverages: dict[str, Coverage] = {}
    for number, mutant in enumerate(mutants, 1):
        if mutant.key in known and not (again and known[mutant.key] == SURVIVED):
            continue
        tests = files_for(mutant.path)
        room = str(ROOT / next((room for room in ROOMS if mutant.path.startswith(room)), mutant.path))
        coverage = coverages.setdefault(room, Coverage(room))
        coverage.add(tests)
        needed = coverage.of(mutant, str(ROOT / mutant.path), tests)
        limit = 60.0 + 5 * sum(coverage.seconds[test] for test in needed)
        known[mutant.key] = outcome_of(mutant, needed, limit)
        with results.open("a") as file:
            print(json.dumps([mutant.key, known[mutant.key]]), file=file)
        print(f"{number}/{len(mutants)} {known[mutant.key]:<8} {mutant.key}", flush=True)
    return {mutant.key: known[mutant.key] for mutant in mutants}


def table(mutants: Sequence[Mutant], outcomes: dict[str, str]) -> str:
    """The counts, and a row for each survivor."""
    count = {outcome: list(outcomes.values()).count(outcome) for outcome in (KILLED, HUNG, SURVIVED)}
    rows = [f"tried {len(outcomes)}: " + ", ".join(f"{outcome} {number}" for outcome, number in count.items())]
    survivors = [mutant for mutant in mutants if outcomes[mutant.key] == SURVIVED]
    if survivors:
        rows += ["", "| where | was | survived as |", "|---|---|---|"]
        rows += [f"| {m.path}:{m.line} | `{m.was}` | `{m.becomes}` |" for m in survivors]
    return "\n".join(rows)


def main() -> None:
    """Try the mutants and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("places", nargs="*", default=list(ROOMS), metavar="PATH[:LINE]", help="default: all rooms")
    parser.add_argument("--sample", type=int, help="so many of the mutants, at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "mutants.jsonl")
    parser.add_argument("--again", action="store_true", help="try the survivors of the results again")
    arguments = parser.parse_args()
    for name in HEAVY:
        with suppress(ImportError):
            importlib.import_module(name)
    # Any example that fails will do; making it smaller takes longer than finding it.
    hypothesis.settings.register_profile("mutants", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate])
    hypothesis.settings.load_profile("mutants")
    mutants = chosen(arguments.places, arguments.sample, arguments.seed)
    print(table(mutants, run(mutants, arguments.results.absolute(), arguments.again)))


if __name__ == "__main__":
    main()
