"""An artifact from a stranger: whatever was done to it, loading it says so in one ValueError and runs nothing."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lq.backends.prepare import prepare
from lq.deployment.deploy import export_artifact
from lq.export.artifact.int8_model import load
from lq.export.artifact.manifest import MANIFEST_NAME
from lq.ptq import calibrate
from tests.tiny import quicken_deployment

X = torch.linspace(-1, 1, 32).reshape(8, 4)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sound") / "int8"
    prepared = prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    calibrate(prepared, [X], show_progress=False)
    with pytest.MonkeyPatch.context() as patch:
        quicken_deployment(patch)
        export_artifact(prepared, [X], directory, ["torch", "onnx"])
    return directory


@pytest.fixture
def artifact(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "int8"))


def content(artifact: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact / MANIFEST_NAME).read_text())
    return found


def rewrite(artifact: Path, changed: Any) -> None:
    (artifact / MANIFEST_NAME).write_text(json.dumps(changed))


def replace_file(artifact: Path, name: str, new: bytes) -> None:
    """With a checksum that fits, as a forger would."""
    (artifact / name).write_bytes(new)
    manifest = content(artifact)
    manifest["files"][name] = {"sha256": hashlib.sha256(new).hexdigest(), "bytes": len(new)}
    rewrite(artifact, manifest)


def put(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def drop(*keys: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return change


TAMPERED = {
    "version": (put("format_version", value=True), "was not written by lq"),
    "newer": (put("format_version", value=10**9), "format version 1000000000"),
    "no signature": (drop("signature"), "lacks 'signature'"),
    "no parameters": (drop("signature", "parameters"), "signature lacks 'parameters'"),
    "shape": (put("signature", "inputs", 0, "shape", value=["batch", "4"]), r"inputs\[0\]\.shape\[1\] is '4'"),
    "negative": (put("signature", "inputs", 0, "shape", value=[-4]), r"inputs\[0\]\.shape\[0\] is -4"),
    "sizes": (put("signature", "inputs", 0, "sizes", value=[1, 2, 3]), r"sizes is a list, but must be a list of 2"),
    "a size": (put("signature", "inputs", 0, "sizes", value=[1, "x"]), r"sizes\[1\] is 'x'"),
    "type": (put("signature", "inputs", 0, "dtype", value="load"), r"dtype is 'load', but must be a type of torch"),
    "leaves": (put("signature", "leaves", value=["tensor", "tensor"]), "leaves is a list, but must be a list of 1"),
    "constants": (put("signature", "constants", value=[1]), r"constants is a list"),
    "checksum": (put("files", "int8.pt", "sha256", value="0"), r"files\.int8\.pt\.sha256 is '0'"),
    "bytes": (put("files", "int8.pt", "bytes", value=-1), r"bytes is -1"),
    "outside": (put("files", "../../secret", value={}), "is not the name of a file inside"),
    "absolute": (put("files", "/etc/passwd", value={}), "is not the name of a file inside"),
    "range": (put("ranges", "fq_input_1", value=[2.0, 1.0]), r"ranges\.fq_input_1 is a list, but must be two numbers"),
    "range of nan": (put("ranges", "fq_input_1", value=["nan", 1.0]), r"ranges\.fq_input_1\[0\] is 'nan'"),
    "info": (put("artifacts", "torch", value=[]), r"artifacts\.torch is a list"),
    "engine": (put("artifacts", "torch", "engine", value=3), r"artifacts\.torch\.engine is 3"),
    "no flag": (drop("artifacts", "torch", "flat_output"), r"artifacts\.torch lacks 'flat_output'"),
    "result": (put("results", "torch_vs_fake", "sqnr_db", value="much"), r"sqnr_db is 'much'"),
    "table": (put("table", value=5), r"table is 5, but must be a list"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_field_is_named(artifact: Path, name: str) -> None:
    change, complaint = TAMPERED[name]
    manifest = content(artifact)
    change(manifest)
    rewrite(artifact, manifest)
    with pytest.raises(ValueError, match=complaint) as caught:
        load(artifact)
    assert str(artifact) in str(caught.value)


def test_torchscript_that_opens_files_is_refused(artifact: Path, tmp_path: Path) -> None:
    class Reads(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.from_file("/etc/hostname", False, 1)

    from lq.compat.deprecations import quiet_torchscript

    with quiet_torchscript():
        torch.jit.save(torch.jit.script(Reads()), str(tmp_path / "evil.pt"))
    replace_file(artifact, "int8.pt", (tmp_path / "evil.pt").read_bytes())
    with pytest.raises(ValueError, match=r"int8\.pt: .* holds .*from_file.*give trust=True"):
        load(artifact)


def test_onnx_with_data_elsewhere_is_refused(artifact: Path) -> None:
    model = onnx.load(artifact / "int8.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../secret"
    replace_file(artifact, "int8.onnx", model.SerializeToString())
    with pytest.raises(ValueError, match=r"int8\.onnx: tensor .* lies in another file \(\.\./\.\./secret\)"):
        load(artifact, "onnx")


@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize("new", [b"", b"half a mod", b"PK\x03\x04" + b"\0" * 100])
def test_bytes_that_are_no_model_are_named(artifact: Path, kind: str, new: bytes) -> None:
    name = {"torch": "int8.pt", "onnx": "int8.onnx"}[kind]
    replace_file(artifact, name, new)
    with pytest.raises(ValueError, match=re.escape(name)):
        load(artifact, kind)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in entries for place in places(item, (*path, key)))]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_change_of_the_manifest_does_anything_but_load_or_complain(sound: Path, data: st.DataObject) -> None:
    whole = content(sound)
    path = data.draw(st.sampled_from(places(whole)[1:]))
    changed = copy.deepcopy(whole)
    if data.draw(st.booleans()):
        put(*path, value=data.draw(JSON))(changed)
    else:
        drop(*path)(changed)
    text = json.dumps(changed)
    try:
        (sound / MANIFEST_NAME).write_text(text)
        complaint, model = "", None
        try:
            model = load(sound, "torch")
        except (ValueError, FileNotFoundError) as error:
            complaint = str(error)
        if model is None:
            assert "lq" in complaint or str(sound) in complaint
        else:
            assert repr(model)
            # What still loads was changed where nobody computes with it, or where calls are told what is taken.
            if path[0] not in ("signature", "artifacts"):
                assert torch.equal(model(X), load(sound, "torch")(X))
    finally:
        (sound / MANIFEST_NAME).write_text(json.dumps(whole))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(max_size=300))
def test_no_bytes_are_read_as_a_manifest(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(garbage)
    with pytest.raises(ValueError, match=r"lq\.json"):
        load(tmp_path)
