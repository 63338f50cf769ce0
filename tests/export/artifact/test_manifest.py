import json
import math
from pathlib import Path

import pytest
import torch

from lq.export.artifact.manifest import checked_file, is_artifact, read_manifest, write_manifest


@pytest.fixture
def artifact(tmp_path):
    (tmp_path / "int8.pt").write_bytes(b"model")
    write_manifest(tmp_path, {"engine": "x86", "metrics": {"accuracy": 0.9}})
    return tmp_path


def edit(directory, **changes):
    content = json.loads((directory / "lq.json").read_text())
    (directory / "lq.json").write_text(json.dumps({**content, **changes}))


def test_manifest_has_versions_checksums_and_what_was_given(artifact):
    manifest = read_manifest(artifact)
    assert manifest["versions"]["torch"] == torch.__version__
    assert set(manifest["versions"]) >= {"lq", "torch", "lightning", "torchmetrics", "python"}
    assert all(version[0].isdigit() for name, version in manifest["versions"].items() if name != "lq")
    assert manifest["files"] == {
        "int8.pt": {"sha256": "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4", "bytes": 5}
    }
    assert (manifest["engine"], manifest["metrics"], manifest["format_version"]) == ("x86", {"accuracy": 0.9}, 1)


def test_manifest_is_strict_json(tmp_path):
    entries = {"parity": {"sqnr_db": math.inf, "low": -math.inf, "bad": math.nan}, "points": (1, None, True, "x")}
    write_manifest(tmp_path, entries)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads((tmp_path / "lq.json").read_text(), parse_constant=refuse)
    assert content["parity"] == {"sqnr_db": "inf", "low": "-inf", "bad": "nan"}
    assert content["points"] == [1, None, True, "x"]


def test_what_is_no_plain_data_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"manifest entry metrics\.values\[1\] is a Tensor; give plain data"):
        write_manifest(tmp_path, {"metrics": {"values": [1.0, torch.ones(1)]}})
    assert not (tmp_path / "lq.json").exists()


def test_reserved_entries_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"entries \['files', 'format'\] are written by lq itself"):
        write_manifest(tmp_path, {"files": {}, "format": 1, "engine": "x86"})


def test_is_artifact(artifact, tmp_path):
    assert is_artifact(artifact)
    edit(artifact, format_version=99)
    assert is_artifact(artifact)
    edit(artifact, format="other")
    assert not is_artifact(artifact)
    assert not is_artifact(tmp_path / "nothing")


def test_read_names_a_missing_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing does not exist. Give the directory .* e.g. lightning_logs"):
        read_manifest(tmp_path / "nothing")


def test_read_names_a_file(artifact):
    with pytest.raises(NotADirectoryError, match=r"int8.pt is a file; give the artifact's directory, e.g. .*"):
        read_manifest(artifact / "int8.pt")


def test_read_refuses_a_foreign_directory(tmp_path):
    with pytest.raises(ValueError, match=r"is not an lq artifact: it has no lq.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '"x"',
        '{"format": "lq-artifact"}',
        '{"format": "other", "format_version": 1, "files": {}}',
        '{"format": "lq-artifact", "format_version": "1", "files": {}}',
    ],
)
def test_read_refuses_json_of_somebody_else(tmp_path, text):
    (tmp_path / "lq.json").write_text(text)
    with pytest.raises(ValueError, match=r"lq.json was not written by lq: .* is not an lq artifact"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b'{"format": ', b"\xff\xfe", b""])
def test_read_refuses_a_damaged_file(tmp_path, content):
    (tmp_path / "lq.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"lq.json is not valid JSON \(.*\)[.:] (The file was|the artifact)"):
        read_manifest(tmp_path)


def test_read_refuses_one_without_end(artifact, monkeypatch):
    monkeypatch.setattr("lq.export.artifact.manifest.LARGEST_MANIFEST", 1000)
    with (artifact / "lq.json").open("ab") as file:
        file.write(b" " * 5000)
    with pytest.raises(ValueError, match=r"lq.json has more than 1000 bytes, so lq did not write it"):
        read_manifest(artifact)


def test_read_refuses_a_newer_format(artifact):
    edit(artifact, format_version=2, versions={"lq": "9.1"})
    with pytest.raises(ValueError, match=r"format version 2, written by lq 9.1; .* up to 1. Upgrade it: pip"):
        read_manifest(artifact)


def test_checked_file(artifact):
    assert checked_file(artifact, read_manifest(artifact), "int8.pt") == Path(artifact, "int8.pt")


def test_checked_file_refuses_what_was_changed_even_at_the_same_size(artifact):
    (artifact / "int8.pt").write_bytes(b"modal")
    with pytest.raises(ValueError, match=r"int8.pt is not the file that was exported: its checksum differs"):
        checked_file(artifact, read_manifest(artifact), "int8.pt")


def test_checked_file_tells_never_exported_from_lost(artifact):
    manifest = read_manifest(artifact)
    with pytest.raises(FileNotFoundError, match=r"was exported without prepared.pt; it has int8.pt"):
        checked_file(artifact, manifest, "prepared.pt")
    (artifact / "int8.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"int8.pt is missing, but lq.json lists it. Copy the whole"):
        checked_file(artifact, manifest, "int8.pt")
