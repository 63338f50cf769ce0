"""Options are checked before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lq.cli.values import check_counts, check_file, check_folder
from tests.cli.runs import WithAllData, quiet_trainer


def test_counts_begin_at_1() -> None:
    check_counts(batches=None, calibration=1)
    with pytest.raises(ValueError, match="--calibration -2 must be at least 1"):
        check_counts(batches=1, calibration=-2)


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a file"
    file.write_text("")
    for place in (file, file / "x", file / "x" / "y"):
        with pytest.raises(ValueError, match=r"--out .*a file is not a directory; give another path"):
            check_folder("out", str(place))
    with pytest.raises(ValueError, match=r"is a directory; give a file, such as .*/page\.html"):
        check_file("out", str(tmp_path), "page.html")
    with pytest.raises(ValueError, match=r"a file is not a directory"):
        check_file("out", str(file / "page.html"), "page.html")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ValueError, match="you may not write in"):
        check_folder("out", str(tmp_path / "new"))
    with pytest.raises(ValueError, match=r"you may not write .*a file"):
        check_file("out", str(file), "page.html")


def test_where_something_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_folder("out", str(tmp_path))
    check_folder("out", "new/and newer")
    for file in ("page.html", "new/ü/page.html", None):
        check_file("out", file, "page.html")
    (tmp_path / "page.html").write_text("")
    check_file("out", "page.html", "page.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html"], "a check makes nothing"


@pytest.mark.parametrize(
    ("subcommand", "arguments", "message"),
    [
        ("ptq", {"batches": 0}, "--batches 0 must be at least 1"),
        ("bits", {"batches": -1}, "--batches -1 must be at least 1"),
        ("bits", {"out": "{file}"}, "--out .* is not a directory"),
        ("analyze", {"calibration": 0}, "--calibration 0 must be at least 1"),
        ("analyze", {"out": "{file}/x"}, "--out .* is not a directory"),
        ("report", {"batches": 0}, "--batches 0 must be at least 1"),
        ("report", {"calibration": 0}, "--calibration 0 must be at least 1"),
        ("report", {"out": "{folder}"}, "--out .* is a directory; give a file"),
        ("report", {"picture": "{file}/x.png"}, "--picture .* is not a directory"),
        ("bench", {"threads": 0}, "--threads 0 must be at least 1"),
        ("bench", {"min_time": -1.0}, "--min_time -1.0 must be above 0 seconds"),
        ("bench", {"min_time": float("nan")}, "--min_time nan must be above 0 seconds"),
        ("bench", {"json_file": "{folder}"}, "--json_file .* is a directory; give a file"),
    ],
)
def test_subcommands_check_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subcommand: str, arguments: dict[str, Any], message: str
) -> None:
    if subcommand == "report":
        pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    places = {"file": tmp_path / "file", "folder": tmp_path}
    given = {k: v.format(**places) if isinstance(v, str) else v for k, v in arguments.items()}
    given |= {"artifact": "nowhere"} if subcommand == "bench" else {}
    module = WithAllData()
    monkeypatch.setattr(WithAllData, "train_dataloader", lambda self: pytest.fail("data were asked for"))
    with pytest.raises(ValueError, match=message):
        getattr(quiet_trainer(tmp_path), subcommand)(module, **given)
