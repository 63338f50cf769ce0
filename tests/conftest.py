"""Small data in the formats of the real ones, and a way to run the command line."""

from __future__ import annotations

import gc
import gzip
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

RunLq = Callable[..., None]


class SecondChance:
    """Where a worker of pytest-xdist dies, its test runs once more in a fresh process, and that counts.

    A worker runs the native code of half a dozen runtimes for minutes; a crash that the test itself causes comes again.
    """

    def __init__(self) -> None:
        self.given: set[str] = set()
        self.pending: set[str] = set()

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport, sched: Any) -> None:
        """Schedule it again, the first time."""
        if crashitem in self.given:
            return
        self.given.add(crashitem)
        with suppress(NotImplementedError):  # --dist loadfile and the like cannot
            sched.mark_test_pending(crashitem)
            self.pending.add(crashitem)
            report.outcome = "crashed"  # type: ignore[assignment]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what has run again."""
        if report.outcome != "crashed":  # type: ignore[comparison-overlap]
            self.pending.discard(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail if the second time never came, as when no more workers may be started."""
        if self.pending:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Neither passed nor failed yet."""
        return ("crashed", "C", "CRASHED") if report.outcome == "crashed" else None  # type: ignore[comparison-overlap]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name them."""
        for report in terminalreporter.stats.get("crashed", ()):
            ran = "NEVER RAN AGAIN" if report.nodeid in self.pending else "RAN AGAIN"
            terminalreporter.write_line(f"CRASHED, {ran} {report.nodeid} ({report.longrepr})")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SecondChance())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what tests/slow.txt names; a line that names nothing is an error once its file is collected as a whole."""
    lines = (Path(__file__).parent / "slow.txt").read_text().splitlines()
    slow = tuple(line for line in lines if line and not line.startswith("#"))
    for item in items:
        if item.nodeid.startswith(slow):
            item.add_marker("slow")
    names = [item.nodeid for item in items]
    whole = (
        {item.nodeid.partition("::")[0] for item in items} if not any("::" in given for given in config.args) else set()
    )
    stale = [line for line in slow if line.partition("::")[0] in whole and not any(n.startswith(line) for n in names)]
    if stale:
        raise pytest.UsageError(f"tests/slow.txt names tests that do not exist: {', '.join(stale)}")


def pytest_collection_finish() -> None:
    # Modules and tests stay to the end: collections of garbage need not look at them, which takes a tenth of the time.
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Small tensors only: more threads would wait for each other, and results would depend on their number.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def write_idx(path: Path, values: Tensor) -> None:
    header = bytes([0, 0, 8, values.dim()]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    content = header + values.to(torch.uint8).numpy().tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture(scope="session")
def fashion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four IDX files with 48 + 16 images of 28x28 whose brightness tells their class."""
    folder = tmp_path_factory.mktemp("fashion")
    for prefix, count in (("train", 48), ("t10k", 16)):
        labels = torch.arange(count) % 10
        images = (labels.view(-1, 1, 1) * 25).expand(count, 28, 28)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder of two classes: 4 images of each to train, 2 to validate."""
    image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("images")
    for part, count in (("train", 4), ("val", 2)):
        for colour in ("red", "green"):
            folder = root / part / colour
            folder.mkdir(parents=True)
            for index in range(count):
                image.new("RGB", (40 + index, 36), colour).save(folder / f"{index}.png")
    return root


@pytest.fixture
def run_lq(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RunLq:
    """Run `lq` with some arguments in this process, inside an empty directory."""
    from lq.cli import main

    def run(*args: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", ["lq", *map(str, args)])
        main()

    monkeypatch.chdir(tmp_path)
    return run
