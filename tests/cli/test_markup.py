"""Docstrings without markup."""

from __future__ import annotations

import pytest

from lq.cli.markup import without_markup


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (":meth:`~lightning.pytorch.core.LightningModule.log`", "log"),
        (":py:class:`torch.nn.Module`", "torch.nn.Module"),
        (":ref:`the docs <lightning-cli>`", "lightning-cli"),
        ("``a * b ** c`` and `d`", "a * b ** c and d"),
        ("`Krizhevsky <https://a.b>`__", "Krizhevsky (https://a.b)"),
        (".. note:: mind", "Note: mind"),
        ("2 ** 3 ** 4, a*b", "2 ** 3 ** 4, a*b"),
    ],
)
def test_only_the_words_are_left(text: str, plain: str) -> None:
    assert without_markup(text) == plain
