"""A process that has nothing of this one but its packages, and calls the same function of lq again and again."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import IO, TYPE_CHECKING

from lq.export.parity.isolation import START, job_of, worker_environment

if TYPE_CHECKING:
    from typing_extensions import Self

_LENGTH = struct.Struct("<Q")
_END = 2**64 - 1  # in place of a length: a call has no more pieces
_DONE = b"1"
_LAST_LINES = 40


class WorkerError(RuntimeError):
    """The process could not do its work, whatever the model is.

    Example:
        >>> try:
        ...     run_module("lq.no_such_module")
        ... except WorkerError as error:
        ...     print(str(error).partition(":")[0])
        ...     print(str(error).splitlines()[-1])
        a fresh process ended with exit status 1
        ModuleNotFoundError: No module named 'lq.no_such_module'
    """


class FreshProcess:
    """Calls ``main`` of a module in a process of its own, which sees neither the working directory nor ``PYTHON...``.

    Used as a context manager, it starts at once: importing torch takes seconds, which then pass beside other work. A
    process that has died is replaced by the next call. It ends with the context, and with this process, however that
    ends.

    Args:
        module: its name.

    Attributes:
        process: the one that waits for a call, or ``None``.

    Example:
        >>> with FreshProcess("lq.export.parity.fresh_process") as process:
        ...     process.call(given=[b"ab", b"c"])
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self.process: subprocess.Popen[bytes] | None = None
        self._printed: deque[bytes] = deque(maxlen=_LAST_LINES)
        self._reader: threading.Thread | None = None
        self._worked = False

    def __enter__(self) -> Self:
        with suppress(WorkerError):  # the call says so, if there is one
            self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._end()

    def call(self, *arguments: str, given: Iterable[bytes] = ()) -> None:
        """Wait for one call.

        Args:
            arguments: of ``main``.
            given: what it finds in :func:`given`, piece by piece.

        Raises:
            WorkerError: if the process cannot be started, or ends, with all that it printed last.
        """
        if self._worked and self.process is not None and self.process.poll() is not None:
            self._end()
        process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _feed(process.stdin, [json.dumps(arguments).encode()], given)
            done = process.stdout.read(1) == _DONE
        except BaseException:  # also a signal that has broken off the wait
            self._end()
            raise
        self._worked = done
        if not done:
            raise WorkerError(f"a fresh process {_ending(process.wait())}: {self._end()}")

    def _start(self) -> subprocess.Popen[bytes]:
        if self.process is not None:
            return self.process
        if not sys.executable:
            raise WorkerError("a fresh process could not be started: this Python does not know its own executable")
        command = [sys.executable, "-I", "-c", START, json.dumps(job_of(self.module))]
        try:
            self.process = subprocess.Popen(
                command, cwd="/" if sys.platform != "win32" else None, env=worker_environment(),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            raise WorkerError(f"a fresh process could not be started: {error}") from error
        self._printed.clear()
        self._reader = threading.Thread(target=self._printed.extend, args=(self.process.stderr,), daemon=True)
        self._reader.start()
        self._worked = False
        return self.process

    def _end(self) -> str:
        """Kill it, as all that it has done is written; returns what it printed last."""
        process, self.process = self.process, None
        if process is None:
            return ""
        process.kill()
        process.wait()
        if self._reader is not None:
            self._reader.join(timeout=5)
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            with suppress(BrokenPipeError):  # of what has not been read
                stream.close()
        return b"".join(self._printed).decode(errors="replace").strip() or "it printed nothing"


def run_module(module: str, *arguments: str) -> None:
    """Call ``main`` of a module once in a fresh process.

    Args:
        module: its name.
        arguments: of its ``main``.

    Raises:
        WorkerError: if it fails, with all that it printed last.

    Example:
        >>> run_module("lq.no_such_module")
        Traceback (most recent call last):
        lq.export.parity.fresh_process.WorkerError: a fresh process ended with exit status 1: Traceback ...
    """
    with FreshProcess(module) as process:
        process.call(*arguments)


def given() -> Iterator[bytes]:
    """In the process: the pieces that a call was given, each once.

    Example:
        >>> list(given())  # nothing, where there was no call
        []
    """
    return _given


def serve(main: Callable[..., None], calls: IO[bytes], replies: IO[bytes]) -> None:
    """In the process: do what is asked for until there is nobody left to ask.

    Args:
        main: does it; an exception ends the process.
        calls: from the parent.
        replies: where the parent waits.

    Example:
        >>> from io import BytesIO
        >>> calls, replies = BytesIO(), BytesIO()
        >>> _feed(calls, [json.dumps(["hello"]).encode()], [b"a", b"b"])
        >>> _ = calls.seek(0)
        >>> serve(lambda word: print(word, list(given())), calls, replies)
        hello [b'a', b'b']
        >>> replies.getvalue()
        b'1'
    """
    global _given
    while call := list(_pieces(calls, 1)):
        _given = _pieces(calls)
        main(*json.loads(call[0]))
        deque(_given, maxlen=0)  # what main did not want
        replies.write(_DONE)
        replies.flush()


def main() -> None:
    """Read what is given, and do nothing with it.

    Example:
        >>> main()
        >>> list(given())  # whatever there was
        []
    """
    deque(given(), maxlen=0)


_given: Iterator[bytes] = iter(())


def _pieces(stream: IO[bytes], count: int | None = None) -> Iterator[bytes]:
    while count != 0 and (header := stream.read(_LENGTH.size)):
        (length,) = _LENGTH.unpack(header)
        if length == _END:
            return
        yield stream.read(length)
        count = None if count is None else count - 1


def _feed(stream: IO[bytes], *parts: Iterable[bytes]) -> None:
    with suppress(BrokenPipeError):  # it has ended then, and its exit code says why
        for part in parts:
            for piece in part:
                stream.write(_LENGTH.pack(len(piece)))
                stream.write(piece)
        stream.write(_LENGTH.pack(_END))
        stream.flush()


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit status {code}"
    name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
    return f"was killed by {name}"
