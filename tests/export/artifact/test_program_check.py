from __future__ import annotations

import io
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from lq.deployment.deploy import export_artifact
from lq.export.artifact.int8_model import load
from lq.export.artifact.program_check import check_program, only_plain_pickles, read_archive
from lq.export.formats.pt2 import FILE, export
from tests.export.nets import Residual, calibrated, example_of, images


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pt2")
    example = example_of(images(4))
    export(calibrated(Residual(), example), example, directory)
    return directory / FILE


def changed(program: Path, to: Path, old: str, new: str) -> Path:
    """The same archive with other words in its JSON."""
    found = False
    writer: Any = torch._C.PyTorchFileWriter(str(to))
    for name, content in read_archive(program):
        if name.endswith(".json") and old.encode() in content:
            found, content = True, content.replace(old.encode(), new.encode())
        if name not in ("version", "byteorder", ".data/version", ".data/serialization_id"):
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    assert found
    return to


def test_what_lq_writes_passes(program: Path) -> None:
    check_program(program)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('"torch.ops.aten.conv2d.default"', '"torch.os.system"', r"names the function 'torch\.os\.system'"),
        ('"torch.ops.aten.conv2d.default"', '"torch.ops.import_module"', "names the function"),
        ('"torch.ops.aten.conv2d.default"', '"_operator.attrgetter"', "names the function"),
        ('"torch.ops.aten.conv2d.default"', '"torch.ops.aten.from_file.default"', "names the function"),
        ('"guards_code": []', '"guards_code": ["__import__(chr(97))"]', "which is not a size"),
        ('"guards_code": []', '"guards_code": ["L[0].__class__"]', "which is not a size"),
        ("Symbol('s", "exec('s", "which is not a size"),
        ('\\"builtins.tuple\\"', '\\"this.Class\\"', "names the class 'this.Class'"),
    ],
)
def test_a_program_that_would_run_code_is_refused(
    program: Path, tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    with pytest.raises(ValueError, match=rf"x\.pt2: .*{complaint}"):
        check_program(changed(program, tmp_path / "x.pt2", old, new))


@pytest.mark.parametrize(
    "expression",
    [
        *("9**9**9", "1 << 4000", "open", "s0.__class__", "(lambda: 1)()", "[s0][0]", ""),
        *("torch.load(s0)", "torch.hub.load(s0)", "torch.ops.load_library(s0)", "torch.sym_max.__globals__"),
    ],
)
def test_sizes_are_arithmetic(program: Path, tmp_path: Path, expression: str) -> None:
    path = changed(program, tmp_path / "x.pt2", '"guards_code": []', f'"guards_code": ["{expression}"]')
    with pytest.raises(ValueError, match="which is not a size"):
        check_program(path)


@pytest.mark.parametrize(
    "expression",
    [
        *("L['x'].size()[0] >= 2", "Eq(Mod(2*s0, 4), 0)", "Max(1, s77) <= 2**31"),
        "torch.sym_max(1, L['x'].size()[3] // 4) * torch.sym_min(2, s0) < 9",
    ],
)
def test_honest_sizes_pass(program: Path, tmp_path: Path, expression: str) -> None:
    check_program(changed(program, tmp_path / "x.pt2", '"guards_code": []', f'"guards_code": ["{expression}"]'))


def test_compiled_code_is_refused(tmp_path: Path) -> None:
    writer: Any = torch._C.PyTorchFileWriter(str(tmp_path / "x.pt2"))
    writer.write_record("data/aotinductor/model/a.so", b"x", 1)
    writer.write_end_of_file()
    with pytest.raises(ValueError, match="is compiled code, which lq never writes"):
        check_program(tmp_path / "x.pt2")


@pytest.mark.parametrize("content", [b"", b"half a mod", b"PK\x03\x04" + b"\0" * 64])
def test_what_is_no_archive_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt2").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pt2 is not an archive of PyTorch"):
        check_program(tmp_path / "x.pt2")


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("/tmp/should-never-be",)


def test_pickles_are_plain_whoever_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    buffer = io.BytesIO()
    torch.save(Bomb(), buffer)
    buffer.seek(0)
    with only_plain_pickles(), pytest.raises(Exception, match="Weights only"):
        torch.load(buffer, weights_only=False)
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_the_reader_is_that_of_torch(program: Path) -> None:
    with zipfile.ZipFile(program) as archive:
        assert len(list(read_archive(program))) <= len(archive.namelist())


@pytest.mark.parametrize(("wanted", "seen"), [(True, "1"), (False, None)])
def test_of_two_threads_each_has_what_it_wants(monkeypatch: pytest.MonkeyPatch, wanted: bool, seen: str | None) -> None:
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    before, entered, left = dict(os.environ), Event(), Event()

    def second() -> str | None:
        with only_plain_pickles(wanted):
            entered.set()
            found = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
            assert left.wait(10)
            assert os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD") == found
            return found

    with ThreadPoolExecutor() as pool:
        with only_plain_pickles():
            done = pool.submit(second)
            entered.wait(0.3)  # it has to wait, so this passes in full
            assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
        left.set()
        assert done.result() == seen
    assert dict(os.environ) == before


def test_several_threads_may_load_at_once(tmp_path: Path) -> None:
    x, prepared = images(4), calibrated(Residual(), example_of(images(4)))
    directory = export_artifact(prepared, [x], tmp_path / "int8", ["pt2"]).directory
    assert directory is not None
    before = dict(os.environ)
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda trust: load(directory, trust=trust), [False, True] * 2))
    assert dict(os.environ) == before
    assert all(torch.equal(model(x), models[0](x)) for model in models)
