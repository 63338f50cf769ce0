from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest

from lq.export.artifact.manifest import read_manifest, write_manifest
from lq.export.artifact.remote import check_remote, download, local_path, remote_manifest, upload
from tests.export.stores import refuse, willing_store


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}/run/int8"


@pytest.fixture
def store() -> Any:
    return fsspec.filesystem("memory")


def key(url: str, name: str = "") -> str:
    return f"{url.removeprefix('memory:/')}/{name}".rstrip("/")


def written(directory: Path, **files: str) -> Path:
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_text(content)
    write_manifest(directory, {"artifacts": {}})
    return directory


def names(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def edit(store: Any, url: str, **changes: Any) -> None:
    file = key(url, "lq.json")
    store.pipe_file(file, json.dumps({**json.loads(store.cat_file(file)), **changes}).encode())


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("file:///runs/a", "/runs/a"),
        ("file://localhost/runs/a", "/runs/a"),
        ("local:///runs/a%20b", "/runs/a b"),
        ("~/a", "/home/me/a"),
        (Path("~/a"), "/home/me/a"),
        ("runs/a", "runs/a"),
        ("s3://bucket/a", None),
        ("memory://a", None),
    ],
)
def test_local_paths(monkeypatch: pytest.MonkeyPatch, place: str | Path, path: str | None) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    found = local_path(place)
    assert (None if found is None else found.as_posix()) == path


def test_places_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"names the host 'runs', but .* is absolute: file:///runs/a; for a relative "):
        local_path("file://runs/a")
    with pytest.raises(ValueError, match=r"'~nobody-of-this-name/a' is not a path: .*\. Choose another\."):
        local_path("~nobody-of-this-name/a")


def test_what_is_uploaded_can_be_downloaded(url: str, tmp_path: Path) -> None:
    upload(written(tmp_path / "a", model="m", state="s"), url)
    download(url, tmp_path / "b")
    assert names(tmp_path / "b") == ["lq.json", "model", "state"]
    assert read_manifest(tmp_path / "b") == read_manifest(tmp_path / "a")


def test_only_what_the_manifest_lists_is_downloaded(url: str, store: Any, tmp_path: Path) -> None:
    upload(written(tmp_path / "a", model="m"), url)
    store.pipe_file(key(url, "video.mp4"), b"somebody else's")
    store.pipe_file(key(url, "evil.txt"), b"evil")
    # as a key of an object store may be, which knows no directories
    store.store[key(url, "../../evil.txt")] = store.store.pop(key(url, "evil.txt"))
    assert key(url, "../../evil.txt") in store.find(key(url)), "it is offered"
    download(url, tmp_path / "deep" / "er" / "b")
    assert names(tmp_path / "deep") == ["er/b/lq.json", "er/b/model"]


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "..\\evil.txt", "C:evil.txt"])
def test_a_manifest_that_lists_files_elsewhere_is_refused(url: str, store: Any, tmp_path: Path, name: str) -> None:
    upload(written(tmp_path / "a", model="m"), url)
    edit(store, url, files={name: {"sha256": 64 * "0", "bytes": 4}})
    with pytest.raises(ValueError, match=r"memory://.*/lq\.json\.files\..*evil\.txt is not the name of a file inside"):
        download(url, tmp_path / "b")
    assert names(tmp_path) == ["a/lq.json", "a/model"]


def test_what_is_no_artifact_is_not_downloaded(url: str, store: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"int8 does not exist\. Give the directory that a training exported"):
        download(url, tmp_path / "b")
    store.pipe_file(key(url, "model"), b"m")
    with pytest.raises(ValueError, match=r"int8 is not an lq artifact: it has no lq\.json"):
        download(url, tmp_path / "b")
    store.pipe_file(key(url, "lq.json"), b'{"format": "another"}')
    with pytest.raises(ValueError, match=r"lq\.json was not written by lq"):
        download(url, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_manifest_without_end_is_not_read_to_its_end(
    url: str, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(written(tmp_path / "a"), url)
    monkeypatch.setattr("lq.export.artifact.manifest.LARGEST_MANIFEST", 1000)
    monkeypatch.setattr("lq.export.artifact.remote.LARGEST_MANIFEST", 1000)
    store.pipe_file(key(url, "lq.json"), store.cat_file(key(url, "lq.json")) + b" " * 5000)
    assert len(remote_manifest(url) or b"") == 1001
    with pytest.raises(ValueError, match=r"int8/lq\.json has more than 1000 bytes"):
        download(url, tmp_path / "b")


def test_one_of_a_newer_format_is_not_downloaded(url: str, store: Any, tmp_path: Path) -> None:
    upload(written(tmp_path / "a", model="m"), url)
    edit(store, url, format_version=99)
    with pytest.raises(ValueError, match=r"memory://.*int8 has format version 99"):
        download(url, tmp_path / "b")
    check_remote(url)  # it may be replaced


def test_a_part_of_an_artifact_is_enough_to_load_a_part(url: str, store: Any, tmp_path: Path) -> None:
    upload(written(tmp_path / "a", model="m", state="s"), url)
    store.rm_file(key(url, "state"))
    download(url, tmp_path / "b")
    assert names(tmp_path / "b") == ["lq.json", "model"]


def test_an_upload_deletes_what_is_its_own_only(url: str, store: Any, tmp_path: Path) -> None:
    upload(written(tmp_path / "a", gone="1", edited="2", stays="3"), url)
    store.pipe_file(key(url, "edited"), b"by hand")
    store.pipe_file(key(url, "notes.txt"), b"mine")
    upload(written(tmp_path / "b", stays="4"), url)
    found = {path.rpartition("/")[2]: store.cat_file(path) for path in store.find(key(url))}
    assert found.pop("lq.json") == (tmp_path / "b" / "lq.json").read_bytes()
    assert found == {"edited": b"by hand", "notes.txt": b"mine", "stays": b"4"}


@pytest.mark.parametrize("content", [b"no JSON", b'{"files": {"thesis.tex": 1}}', b'{"files": ["thesis.tex"]}'])
def test_the_manifest_of_somebody_else_costs_no_file(url: str, store: Any, tmp_path: Path, content: bytes) -> None:
    store.pipe_file(key(url, "thesis.tex"), b"years of work")
    store.pipe_file(key(url, "lq.json"), content)
    with pytest.raises(FileExistsError, match="files that are not an lq artifact"):
        check_remote(url)
    upload(written(tmp_path / "a", model="m"), url)
    assert store.cat_file(key(url, "thesis.tex")) == b"years of work"


def test_whatever_a_store_raises_is_an_os_error(tmp_path: Path) -> None:
    url, place = willing_store(), written(tmp_path / "a", model="m")
    refuse("write")
    with pytest.raises(OSError, match=r"cannot write refusing://.*: 403 for write\. Check the address and the cred"):
        check_remote(url)
    refuse("read")
    with pytest.raises(OSError, match=r"cannot read refusing://.*: 403 for read\. Check the address"):
        remote_manifest(url)
    refuse("look")
    with pytest.raises(OSError, match=r"cannot read refusing://.*: 403 for look\. Check the address"):
        download(url, tmp_path / "b")
    refuse("upload", part="model")
    with pytest.raises(OSError, match=r"cannot upload to refusing://.*: 403 for upload"):
        upload(place, url)
    refuse()
    assert not fsspec.filesystem("refusing").find(url), "nothing is left of it"
    upload(place, url)
    refuse("download")
    with pytest.raises(OSError, match=r"cannot read refusing://.*/model: 403 for download"):
        download(url, tmp_path / "b")


def test_leftovers_that_cannot_be_deleted_cost_no_artifact(tmp_path: Path) -> None:
    url = willing_store()
    upload(written(tmp_path / "a", model="m", state="s"), url)
    refuse("delete", part="/state")
    upload(written(tmp_path / "b", model="n"), url)
    download(url, tmp_path / "c")
    assert (tmp_path / "c" / "model").read_text() == "n"
