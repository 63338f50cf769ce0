"""Names that nothing else has."""

from __future__ import annotations

from lq.tracing.names import free_name


def test_a_name_that_is_free_stays() -> None:
    assert free_name("fc", set[str]().__contains__) == "fc"


def test_the_first_number_that_is_free_comes_behind_it() -> None:
    assert free_name("fc", {"fc", "fc_2"}.__contains__) == "fc_1"
    assert free_name("fc", {"fc", "fc_1"}.__contains__) == "fc_2"
