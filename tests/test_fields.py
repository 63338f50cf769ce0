from __future__ import annotations

from typing import Any

import pytest

from lq.fields import Field, parse_json


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": NaN}', "NaN is not finite"),
        ('{"a": -Infinity}', "-Infinity is not finite"),
        ('{"a": 1e999}', "1e999 is not finite"),
        ('{"a": 1, "a": 2}', "stands twice"),
        ("[" * 200 + "]" * 200, "nested more than 100 deep"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("1" * 10_000, "limit"),
        ("", "Expecting value"),
    ],
    ids=["nan", "infinity", "overflow", "twice", "deep", "very deep", "huge", "empty"],
)
def test_json_that_is_more_than_json_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^lq\.json is not valid JSON \(.*{reason}.*\)\. The file was changed"):
        parse_json(text, "lq.json")


@pytest.mark.parametrize(
    ("value", "read", "wanted"),
    [
        ("4", Field.integer, "'4', but must be a whole number"),
        (True, Field.integer, "True, but must be a whole number"),
        (2**70, Field.integer, "but must be a whole number"),
        (float("nan"), Field.number, "nan, but must be a finite number"),
        (10**400, Field.number, "but must be a finite number"),
        (1, Field.flag, "1, but must be true or false"),
        (None, Field.text, "None, but must be text"),
        ([], Field.mapping, "a list, but must be a mapping"),
        ({1: 2}, Field.mapping, "a dict, but must be a mapping with text"),
        ("abc", Field.each, "'abc', but must be a list"),
    ],
)
def test_a_wrong_type_is_named_with_its_place(value: Any, read: Any, wanted: str) -> None:
    with pytest.raises(ValueError, match=rf"^a\.ckpt: x is .*{wanted}"):
        read(Field(value, "a.ckpt: x"))


def test_a_missing_entry_is_named() -> None:
    with pytest.raises(ValueError, match=r"^lq\.json\.a lacks 'b'"):
        Field({"a": {}}, "lq.json")["a"]["b"]
