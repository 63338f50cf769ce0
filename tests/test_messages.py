"""Words of messages."""

from __future__ import annotations

from lq.messages import one_line


def test_an_error_is_told_in_one_line() -> None:
    assert one_line(ValueError("too\n  long.\n")) == "too long"
    assert one_line("plain text") == "plain text"


def test_long_errors_are_cut_off() -> None:
    assert one_line("x" * 300) == "x" * 300
    assert one_line("x" * 301) == "x" * 300 + "..."
    assert one_line("x" * 301, None) == "x" * 301
    assert one_line("abc def", 4) == "abc..."
