from __future__ import annotations

import os
import uuid
from pathlib import Path

import fsspec
import pytest
import torch

from lq.deployment.destination import Destination
from lq.deployment.handover import as_destination
from lq.deployment.results import Compared
from lq.deployment.settings import ExportSettings
from lq.export.artifact.remote import download
from tests.export.nets import example_of, images, residual
from tests.tiny import quicken_deployment


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)


def deliver_to(destination: Destination | None, prepared: object = None) -> object:
    from lq.deployment.gated_export import gated_export

    order = ExportSettings(directory=destination)
    return gated_export(residual(), example_of(images(4)), lambda models, keep: Compared(), order)


def test_the_home_directory_and_file_urls_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Destination.at("~/int8").path == tmp_path / "int8"
    assert Destination.at(f"file://{tmp_path}/a%20b").path == tmp_path / "a b"


def test_a_path_is_resolved_where_the_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    destination = Destination.at("int8")
    monkeypatch.chdir("/")
    assert destination.path == tmp_path / "int8"


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}/run/int8"


def test_a_store_gets_it_as_a_whole(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    destination = as_destination(url)
    assert destination is not None
    store = fsspec.filesystem("memory")
    done = deliver_to(destination)
    assert done.directory == url  # type: ignore[attr-defined]
    names = sorted(os.path.basename(path) for path in store.find(url))
    assert names == ["int8.pt", "lq.json", "prepared.pt"]
    assert list(tmp_path.iterdir()) == [], "nothing stays here"
    download(url, tmp_path / "copy")
    from lq.export.artifact.int8_model import load

    assert torch.equal(load(tmp_path / "copy")(images(3)), done.models["torch"](images(3)))  # type: ignore[attr-defined]
    assert torch.equal(load(url)(images(3)), load(tmp_path / "copy")(images(3)))


def test_a_second_run_into_a_store_takes_another_name(url: str) -> None:
    first, second = Destination.at(url), Destination.at(url)
    deliver_to(first)
    fsspec.filesystem("memory").pipe_file(f"{url}/model.engine".removeprefix("memory:/"), b"mine")
    assert deliver_to(second).directory == f"{url}-2"  # type: ignore[attr-defined]
    assert deliver_to(Destination.at(url)).directory == url  # type: ignore[attr-defined]
    assert fsspec.filesystem("memory").exists(f"{url}/model.engine"), "what is not our own stays"


def test_a_store_that_refuses_costs_no_model(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    destination = Destination.at(url)

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", refuse)
    with pytest.raises(OSError, match=r"cannot upload to memory://.*no route to host\. The artifact is complete; it"):
        deliver_to(destination)
    (refuge,) = tmp_path.iterdir()
    assert (refuge / "lq.json").exists()


def test_stores_that_cannot_be_used_are_refused_beforehand(url: str) -> None:
    fsspec.filesystem("memory").pipe_file(f"{url}/thesis.tex", b"years of work")
    with pytest.raises(FileExistsError, match=r"files that are not an lq artifact\. Choose a new path, e\.g\. mem"):
        as_destination(url)
    with pytest.raises((ValueError, ImportError), match="nowhere://a"):
        as_destination("nowhere://a/int8")
