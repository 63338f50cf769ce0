from __future__ import annotations

from lq.callback import QATCallback
from lq.cli.lightning_cli import _has


class Holder:
    class Inner:
        pass


def test_a_callback_may_be_made_by_a_function_or_be_a_nested_class() -> None:
    others = [{"class_path": f"{__name__}.Holder.Inner"}, {"class_path": "builtins.print"}]
    assert not _has(others, QATCallback)
    assert _has([*others, {"class_path": "lq.QATCallback"}], QATCallback)
