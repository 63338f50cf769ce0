"""Why a module has no graph that could be exported: the user's own line, and what to write there instead."""

from __future__ import annotations

import linecache
import re
import traceback

from torch import nn
from torch.nn.utils.rnn import PackedSequence

from lq.compat.users_code import is_users_code
from lq.messages import one_line

_VALUES = re.compile(r"data-dependent|DynamicControlFlow|unbacked|GuardOnDataDependent|\.item\(\)", re.IGNORECASE)

_TAKEN_OUT = re.compile(r"fake tensor in the exported program constant's list")

_TO_NUMPY = re.compile(r"\.numpy\(\) is not supported")


def reason(target: nn.Module, error: Exception, inner: str) -> str:
    """What to say of a module that ``torch.export`` could not export.

    Args:
        target: the module.
        error: of ``torch.export``.
        inner: dotted name of a module in it to recommend, or "".

    Example:
        >>> error = RuntimeError("Could not guard on data-dependent expression u0 > 0")
        >>> print(reason(nn.ReLU(), error, "backbone"))
        ReLU has no graph that could be exported: somewhere inside of it (RuntimeError: Could not guard on ...). That
        line takes a branch, or a size, from the values of a tensor, which no graph can. Write it with tensor operations
        (torch.where), or name an inner module without it: QATCallback(target='backbone').
    """
    inner = "" if _is_inside(target, inner, error) else inner
    instead = f"QATCallback(target={inner!r})" if inner else "QATCallback(target=...)"
    place = _where(error)
    if _VALUES.search(f"{type(error).__name__} {error}") and "`assert " in place:
        remedy = (
            "An assertion on the values of a tensor is a branch, which no graph can take. Put it under "
            f"`if not torch.compiler.is_exporting():`; or name an inner module without it: {instead}."
        )
    elif _VALUES.search(f"{type(error).__name__} {error}"):
        remedy = (
            "That line takes a branch, or a size, from the values of a tensor, which no graph can. Write it with "
            f"tensor operations (torch.where), or name an inner module without it: {instead}."
        )
    elif _TAKEN_OUT.search(str(error)):
        remedy = (
            "It takes a tensor out of the graph, as `x.data` does: write x.detach(). Where forward changes a weight, "
            "as `self.weight.data *= mask` does, compute with the product: F.conv2d(x, self.weight * mask)."
        )
    elif _TO_NUMPY.search(str(error)):
        remedy = (
            "No graph holds arrays of NumPy. Write it with tensor operations, or, if no output depends on it, under "
            f"`if not torch.compiler.is_exporting():`; or name an inner module without it: {instead}."
        )
    elif _holds_packed_sequence(error):
        remedy = (
            "torch.export cannot follow packed sequences. Give the layer the padded tensor, and mask what lies beyond "
            f"the lengths; or name an inner module without it: {instead}."
        )
    else:
        remedy = f"Train and export the inner module that does most of the work: {instead}." if inner else ""
    problem = f"{type(target).__name__} has no graph that could be exported: {place} ({said(error)})"
    return f"{problem}. {remedy}".rstrip()


def _is_inside(target: nn.Module, inner: str, error: BaseException) -> bool:
    """Whether the error went through the module to recommend, which has no graph either then."""
    through = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    parts = [part for name, part in target.named_modules() if name and f".{inner}".endswith(f".{name}")]
    return any(part is one for part in parts for one in through)


def _holds_packed_sequence(error: BaseException) -> bool:
    """Whether a function that the error went through works on one."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(isinstance(value, PackedSequence) for frame, _ in frames for value in frame.f_locals.values())


def said(error: Exception) -> str:
    r"""Type and first paragraph of an error.

    Example:
        >>> said(ValueError("not  this.\n\nmore"))
        'ValueError: not this'
    """
    text = re.split(r"\n\s*\n|\nCaused by|\nThe following call", str(error).strip())[0]
    return f"{type(error).__name__}: {one_line(text, None)}"


def _where(error: BaseException) -> str:
    frames = [(f.filename, f.lineno or 0, f.name, f.line or "") for f in traceback.extract_tb(error.__traceback__)]
    return _line_of([*frames, *_frames_in(str(error))]) or "somewhere inside of it"


def line_in_text(trace: str) -> str:
    r"""The same as :func:`line_in` for a stack that is written down, as nodes of graphs have it.

    Example:
        >>> line_in_text('File "no_such_net.py", line 12, in forward\n    n = len(x)')
        'no_such_net.py:12, in forward'
    """
    return _line_of(_frames_in(trace))


def _frames_in(trace: str) -> list[tuple[str, int, str, str]]:
    found = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', trace)
    return [(file, int(line), name, linecache.getline(file, int(line)).strip()) for file, line, name in found]


def line_in(stack: traceback.StackSummary) -> str:
    """The innermost of the user's own lines in a stack, "file:line, in function: `code`"; "" if there is none.

    Example:
        >>> line_in(traceback.StackSummary.from_list([("net.py", 12, "forward", "n = len(x)")]))
        'net.py:12, in forward: `n = len(x)`'
    """
    return _line_of([(f.filename, f.lineno or 0, f.name, f.line or "") for f in stack])


def _line_of(frames: list[tuple[str, int, str, str]]) -> str:
    """The innermost of the user's own lines; "" if there is none."""
    own = [frame for frame in frames if is_users_code(frame[0])]
    if not own:
        return ""
    file, line, name, code = own[-1]
    return f"{file}:{line}, in {name}" + (f": `{code}`" if code else "")
