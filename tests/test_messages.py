"""Words of messages."""

from __future__ import annotations

from lq.messages import one_line, some_of


def test_an_error_is_told_in_one_line() -> None:
    assert one_line(ValueError("too\n  long.\n")) == "too long"
    assert one_line("plain text") == "plain text"


def test_long_errors_are_cut_off() -> None:
    assert one_line("x" * 300) == "x" * 300
    assert one_line("x" * 301) == "x" * 300 + "..."
    assert one_line("x" * 301, None) == "x" * 301
    assert one_line("abc def", 4) == "abc..."


def test_many_names_are_counted() -> None:
    assert some_of([]) == ""
    assert some_of("abcde") == "a, b, c, d, e"
    assert some_of("abcdef") == "a, b, c, d, e and 1 more"
    assert some_of({"a": 1, "b": 2, "c": 3}, most=1, separator="; ") == "a and 2 more"
