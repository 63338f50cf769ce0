from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lq.deployment.destination import Destination
from lq.deployment.handover import Handed, hand_over, workplace
from lq.export.artifact.int8_model import PREPARED_NAME
from lq.export.artifact.manifest import read_manifest, write_manifest
from lq.export.artifact.remote import download
from lq.export.exporters import EXPORTERS
from tests.export.stores import refuse, willing_store

PASSED, FAILED = "torch", "onnx"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


def describe(directory: Path, kinds: Sequence[str]) -> None:
    write_manifest(directory, {"artifacts": {kind: {} for kind in kinds}})


def handed(destination: Destination, failed: Sequence[str] = (), before: Any = lambda: None) -> Handed:
    """A delivery of bytes that no runtime has to understand; ``before`` happens to it at the end."""
    with workplace(destination) as place:
        (place / PREPARED_NAME).write_text("weights")
        for kind in (PASSED, *failed):
            for file in EXPORTERS[kind].files:
                (place / file).write_text(kind)
        describe(place, [PASSED, *failed])
        before()
        return hand_over(place, destination, [PASSED], failed, not failed, describe)


def kinds(directory: Path | str | None) -> list[str]:
    assert isinstance(directory, Path)
    assert (directory / PREPARED_NAME).read_text() == "weights"
    return list(read_manifest(directory)["artifacts"])


def place_in(error: pytest.ExceptionInfo[OSError], words: str) -> Path:
    found = re.search(rf"\. {words} in (\S+)\.( |$)", str(error.value))
    assert found is not None, error.value
    return Path(found[1])


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_each_goes_where_it_belongs(tmp_path: Path) -> None:
    done = handed(Destination.at(tmp_path / "runs" / "int8"), [FAILED])
    assert (kinds(done.directory), kinds(done.rejected), done.notes) == ([PASSED], [FAILED], ())
    assert left(tmp_path / "runs") == ["int8", "int8.failed"]


def test_files_for_other_tools_go_with_what_failed(tmp_path: Path) -> None:
    destination, files = (
        Destination.at(tmp_path / "int8"),
        ["int8.qnn.encodings", "int8.qnn.float.onnx", "int8.qnn.onnx"],
    )
    with workplace(destination) as place:
        for file in (*files, *EXPORTERS[PASSED].files, PREPARED_NAME):
            (place / file).write_text("weights")
        done = hand_over(place, destination, [PASSED], ["qnn"], False, describe)
    assert set(left(tmp_path / "int8")).isdisjoint(files)
    assert isinstance(done.rejected, Path)
    assert set(left(done.rejected)) > set(files)


@pytest.mark.parametrize("refused", ["upload", "move", "read"])
def test_a_store_that_refuses_at_the_end_costs_no_artifact(tmp_path: Path, refused: str) -> None:
    destination = Destination.at(willing_store())
    with pytest.raises(OSError, match=rf"refusing://.*: 403 for {refused}\.") as error:
        handed(destination, before=lambda: refuse(refused))
    refuge = place_in(error, "The artifact is complete; it is")
    assert kinds(refuge) == [PASSED]
    assert left(tmp_path / "tmp") == [refuge.name]


def test_a_link_in_the_way_costs_no_artifact(tmp_path: Path) -> None:
    wanted = tmp_path / "runs" / "int8"
    with pytest.raises(OSError, match="Not a directory") as error:
        handed(Destination.at(wanted), before=lambda: wanted.symlink_to(tmp_path / "nowhere"))
    refuge = place_in(error, "The artifact is complete; it is")
    assert kinds(refuge) == [PASSED]
    assert sorted(left(tmp_path / "runs")) == sorted(["int8", refuge.name])


@contextmanager
def unwritable(directory: Path) -> Iterator[None]:
    """By its mode, and for the superuser by being somebody else."""
    directory.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        directory.chmod(0o755)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs the permissions of Unix")
def test_a_parent_that_became_unwritable_costs_no_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # pytest's own can be entered by its user only
        runs, elsewhere = Path(name, "runs"), Path(name, "tmp")
        for path in (Path(name), runs, elsewhere):
            path.mkdir(exist_ok=True)
            path.chmod(0o777)
        monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
        destination = Destination.at(runs / "int8")
        with workplace(destination) as place:
            (place / PREPARED_NAME).write_text("weights")
            describe(place, [PASSED])
            place.chmod(0o777)
            for path in place.iterdir():
                path.chmod(0o666)
            with unwritable(runs), pytest.raises(PermissionError) as plain:
                (runs / "probe").mkdir()
            assert plain.value.errno == 13
            with unwritable(runs), pytest.raises(OSError, match="Permission denied") as error:
                hand_over(place, destination, [PASSED], [], True, describe)
        refuge = place_in(error, "The artifact is complete; it is")
        assert refuge.parent == elsewhere
        assert kinds(refuge) == [PASSED]


def test_what_did_not_pass_may_get_lost_without_the_rest(tmp_path: Path) -> None:
    url = willing_store()
    done = handed(Destination.at(url), [FAILED], before=lambda: refuse("upload", part=".failed"))
    assert done.directory == url
    refuse()
    download(url, tmp_path / "copy")
    assert kinds(tmp_path / "copy") == [PASSED]
    assert kinds(done.rejected) == [FAILED]
    assert isinstance(done.rejected, Path)
    assert done.rejected.parent == tmp_path / "tmp"
    assert done.notes[0].startswith(
        f"the files that did not pass the gate could not be written next to {url}: cannot upload to {url}.failed: 403"
    )


def test_if_all_is_refused_the_error_says_where_both_are(tmp_path: Path) -> None:
    destination = Destination.at(willing_store())
    with pytest.raises(OSError, match="403 for upload") as error:
        handed(destination, [FAILED], before=lambda: refuse("upload"))
    assert kinds(place_in(error, "The artifact is complete; it is")) == [PASSED]
    assert kinds(place_in(error, "The files that did not pass the gate are")) == [FAILED]
    assert len(left(tmp_path / "tmp")) == 2


def test_an_artifact_that_stays_is_that_of_an_earlier_run(tmp_path: Path) -> None:
    handed(Destination.at(tmp_path / "int8"))
    done = handed(Destination.at(tmp_path / "int8"), [FAILED])
    assert done.directory is None
    assert kinds(tmp_path / "int8") == [PASSED]
    assert kinds(done.rejected) == [PASSED, FAILED]


def test_whether_one_is_there_cannot_be_asked(tmp_path: Path) -> None:
    destination = Destination.at(willing_store())
    with pytest.raises(OSError, match="403 for read") as error:
        handed(destination, [FAILED], before=lambda: refuse("read"))
    assert kinds(place_in(error, "The artifact is complete; it is")) == [PASSED, FAILED]
