import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from lq.export.artifact.creatable import check_creatable
from lq.export.artifact.directory import beside, complete_directory, publish, scratch_directory
from tests.export.places import new_directory


def write(target, text):
    with new_directory(target) as place:
        (place / "a.txt").write_text(text)
        (place / "deep").mkdir()
        (place / "deep" / "b.txt").write_text(text)


def read(target):
    return {path.relative_to(target).as_posix(): path.read_text() for path in target.rglob("*") if path.is_file()}


def whole(text):
    return {"a.txt": text, "deep/b.txt": text}


def test_writes_and_replaces_the_whole_directory(tmp_path):
    target = tmp_path / "new" / "result"
    write(target, "old")
    assert read(target) == whole("old")
    (target / "left over").write_text("x")
    write(target, "new")
    assert read(target) == whole("new")
    assert [path.name for path in target.parent.iterdir()] == ["result"]


def test_the_old_one_is_in_place_while_the_new_one_is_written(tmp_path):
    write(tmp_path / "result", "old")
    with new_directory(tmp_path / "result") as place:
        (place / "a.txt").write_text("half")
        assert read(tmp_path / "result") == whole("old")


def test_an_error_leaves_the_old_one_and_no_traces(tmp_path):
    write(tmp_path / "result", "old")
    with pytest.raises(TypeError, match="must be str"):
        write(tmp_path / "result", b"no text")
    assert read(tmp_path / "result") == whole("old")
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_it_is_as_readable_as_any_other_directory(tmp_path):
    (tmp_path / "plain").mkdir()
    write(tmp_path / "result", "x")
    assert (tmp_path / "result").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_stays_a_link(tmp_path):
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "real") == whole("new")


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("runs/result", "old")
    write(Path("runs/result"), "new")
    assert read(tmp_path / "runs" / "result") == whole("new")


# Ends its process, as SIGKILL would, at the given call that touches a file system.
DIE_AT = """
import os, sys
from pathlib import Path

def die_at(number):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event == "open" or event.startswith(("os.", "shutil.")):
            seen += 1
            if seen == number:
                os._exit(9)
    return hook
"""

# Forks a writer again and again and kills it at its first, second, third ... touch of the file system, until one
# gets through. Whenever it died, the old or the new content must be there in full, and the next write must succeed.
KILLED_AT_EVERY_STEP = (
    DIE_AT
    + """
from lq.export.artifact.directory import complete_directory
from tests.export.places import new_directory

target = Path(sys.argv[1]) / "result"
names = ["a.txt", "deep/b.txt"]

def write(text, hook=None):
    if hook:
        sys.addaudithook(hook)
    with new_directory(target) as place:
        (place / "deep").mkdir()
        for name in names:
            (place / name).write_text(text)

outcomes = []
for number in range(1, 500):
    write("old")
    child = os.fork()
    if child == 0:
        write("new", die_at(number))
        os._exit(0)
    died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    place = complete_directory(target)
    found = {(place / name).read_text() for name in names}
    assert found in ({"old"}, {"new"}), (number, found)
    outcomes.append(f"{found.pop()}{'' if place == target else ' backup'}")
    write("next")
    assert {(target / name).read_text() for name in names} == {"next"}
    assert [path.name for path in target.parent.iterdir()] == ["result"], "traces of the dead writer"
    if not died:
        break
print(",".join(outcomes))
"""
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_dying_at_any_moment_leaves_the_old_or_the_new_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.strip().split(",")
    assert outcomes == sorted(outcomes, key=["old", "old backup", "new"].index)
    assert set(outcomes) == {"old", "old backup", "new"}, "killed before, between and after the two renames"


CHECK_KILLED_AT_EVERY_STEP = (
    DIE_AT
    + """
from lq.export.artifact.creatable import check_creatable

target = Path(sys.argv[1]) / "run" / "result"
for number in range(1, 500):
    child = os.fork()
    if child == 0:
        sys.addaudithook(die_at(number))
        check_creatable(target)
        os._exit(0)
    died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not target.exists(), (number, "a directory of this name looks like somebody's artifact")
    if not died:
        break
check_creatable(target)
assert list(target.parent.glob("*")) == [], "traces of the dead"
print(number)
"""
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_dying_during_the_check_leaves_nothing_under_the_name(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CHECK_KILLED_AT_EVERY_STEP, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5, "killed at every step"


@pytest.mark.parametrize("below", ["", "run/int8"])
def test_check_creatable_leaves_no_trace(tmp_path, below):
    check_creatable(tmp_path / below)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "run", "run/int8"])
def test_a_file_in_the_way_is_named(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(NotADirectoryError, match=r"cannot write .*: .*file is not a directory. Choose another path"):
        check_creatable(file / below)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system where nobody may write")
def test_a_place_without_permission_is_named():
    # even the superuser cannot create a directory in /proc
    with pytest.raises(PermissionError, match=r"cannot write /proc/lq/int8: no directory can be created in /proc \("):
        check_creatable("/proc/lq/int8")


@pytest.mark.skipif(not Path("/proc").is_mount(), reason="needs a mount point")
def test_a_mount_point_cannot_be_replaced():
    with pytest.raises(PermissionError, match=r"cannot replace /proc, a mount point. Choose a directory below it"):
        check_creatable("/proc")


def test_complete_directory_prefers_the_directory_itself(tmp_path):
    write(tmp_path / "result", "x")
    assert complete_directory(tmp_path / "result") == tmp_path / "result"
    assert complete_directory(tmp_path / "nothing") == tmp_path / "nothing"


def test_what_is_not_our_own_moves_into_the_new_one(tmp_path):
    target = tmp_path / "result"
    write(target, "old")
    (target / "deep" / "mine").write_text("an hour of work")
    (target / "b.engine").write_text("another hour")
    with scratch_directory(target) as place:
        (place / "b.engine").write_text("new")
        publish(place, target, lambda old: ["a.txt", "deep/b.txt"])
    found = {"b.engine": "new", "b.engine.kept-1": "another hour", "deep/mine": "an hour of work"}
    assert read(target) == found
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_dying_between_the_renames_loses_nothing_of_the_users(tmp_path):
    write(tmp_path / ".result.old", "old")
    (tmp_path / ".result.old" / "mine").write_text("x")
    write(tmp_path / "other", "new")
    (tmp_path / "other").rename(tmp_path / "result")
    with scratch_directory(tmp_path / "result") as place:
        (place / "a.txt").write_text("next")
        publish(place, tmp_path / "result", lambda old: ["a.txt", "deep/b.txt"])
    assert read(tmp_path / "result") == {"a.txt": "next", "mine": "x"}


def test_scratch_of_the_living_stays_and_that_of_the_dead_goes(tmp_path):
    target = tmp_path / "result"
    (tmp_path / f".result.tmp-{uuid.uuid4().hex}").mkdir()
    with scratch_directory(target) as first:
        with scratch_directory(target) as second:
            assert first.is_dir()
            assert second.is_dir()
        assert sorted(tmp_path.iterdir()) == [first]
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_another_name_is_no_scratch(tmp_path):
    (tmp_path / ".result.tmp-mine").mkdir()
    write(tmp_path / "result", "x")
    assert (tmp_path / ".result.tmp-mine").is_dir()


@pytest.mark.parametrize("below", ["", "deep"])
def test_the_working_directory_is_not_replaced(tmp_path, monkeypatch, below):
    write(tmp_path / "result", "x")
    monkeypatch.chdir(tmp_path / "result" / below)
    with pytest.raises(PermissionError, match=r"which the working directory is or lies in.*below it, e.g. int8"):
        check_creatable(tmp_path / "result")
    check_creatable("int8")


@pytest.mark.parametrize("name", ["n" * 255, "n" * 225, "ö" * 127, "a b.c"])
def test_every_name_that_the_disk_takes_will_do(tmp_path, name):
    target = tmp_path / name
    check_creatable(target)
    write(target, "old")
    write(target, "new")
    assert read(target) == whole("new")
    assert len(os.fsencode(beside(target, ".failed").name)) <= 255
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "reason"), [("n" * 256, "the name is too long"), ("a\0b", "is not the name of a directory")]
)
def test_a_name_that_the_disk_refuses_is_known_beforehand(tmp_path, name, reason):
    with pytest.raises((OSError, ValueError), match=reason):
        check_creatable(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


WITHOUT_WORKING_DIRECTORY = """
import os, sys, tempfile
from lq.export.artifact.creatable import check_creatable
os.chdir(tempfile.mkdtemp()); os.rmdir(os.getcwd())
check_creatable(sys.argv[1])
try:
    check_creatable("runs/int8")
except OSError as error:
    print(error)
"""


def test_a_deleted_working_directory_is_named_for_what_it_is(tmp_path):
    command = [sys.executable, "-c", WITHOUT_WORKING_DIRECTORY, str(tmp_path / "int8")]
    root = str(Path(__file__).parents[3])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root})
    assert done.returncode == 0, done.stderr
    assert "the working directory that it starts from was deleted" in done.stdout


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only the superuser may mount")
@pytest.mark.parametrize(("options", "reason"), [("size=4k", "the disk is full"), ("ro", "can only be read")])
def test_a_disk_that_refuses_is_named_for_what_it_is(tmp_path, options, reason):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)]).returncode:
        pytest.skip("may not mount here")
    try:
        with pytest.raises(OSError, match=rf"cannot write .*int8: .*{reason}"):
            check_creatable(tmp_path / "int8")
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
