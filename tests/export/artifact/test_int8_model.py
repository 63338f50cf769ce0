import json
import subprocess
import sys
import uuid

import pytest
import torch
from torch import nn

from lq.compat.deprecations import quiet_torchscript
from lq.export.artifact.int8_model import check_writable, load, load_prepared_state, own_files
from lq.export.artifact.manifest import write_manifest
from lq.export.artifact.remote import upload
from lq.export.artifact.signature import Signature
from tests.export.places import new_directory

INPUT = torch.linspace(-1, 1, 16).reshape(2, 8)


class Int8Linear(nn.Module):
    """A linear layer on real int8 kernels, as a conversion leaves it."""

    def __init__(self):
        super().__init__()
        weight = torch.linspace(-0.5, 0.5, 32).reshape(4, 8)
        self.linear = torch.ao.nn.quantized.Linear(8, 4)
        self.linear.set_weight_bias(torch.quantize_per_tensor(weight, 0.01, 0, torch.qint8), torch.ones(4))
        self.linear.scale, self.linear.zero_point = 0.05, 64

    def forward(self, x):
        return self.linear(torch.quantize_per_tensor(x, 0.01, 128, torch.quint8)).dequantize()


@pytest.fixture(autouse=True)
def _engine():
    before = torch.backends.quantized.engine
    yield
    torch.backends.quantized.engine = before


@pytest.fixture(scope="module")
def int8():
    with quiet_torchscript():
        return torch.jit.freeze(torch.jit.trace(Int8Linear().eval(), INPUT))


STATE = {"linear.weight": torch.arange(6.0).reshape(2, 3), "observer.max": torch.tensor(2.5)}


@pytest.fixture
def artifact(tmp_path, int8):
    return write(tmp_path / "int8", int8)


def write(directory, int8, engine="x86"):
    signature = Signature.of(Int8Linear(), ((INPUT,), {}), int8(INPUT))
    infos = {"torch": {"engine": engine, "arguments": [], "flat_output": False}}
    with new_directory(directory, own_files) as place:
        int8.save(str(place / "int8.pt"))
        torch.save(STATE, place / "prepared.pt")
        write_manifest(place, {"signature": signature.to_dict(), "artifacts": infos})
    return directory


def test_what_was_written_is_what_is_loaded(artifact, int8):
    model = load(artifact)
    assert torch.equal(model(INPUT), int8(INPUT))
    assert model(INPUT).unique().numel() > 3, "a constant output would compare equal to anything"
    assert model.path == artifact
    assert (model.kind, list(model.manifest["artifacts"])) == ("torch", ["torch"])
    assert sorted(path.name for path in artifact.iterdir()) == ["int8.pt", "lq.json", "prepared.pt"]


def test_the_model_takes_other_batch_sizes_and_keywords_and_makes_no_gradients(artifact, int8):
    model = load(str(artifact))
    assert torch.equal(model(x=INPUT[:1]), int8(INPUT)[:1])
    assert not model(INPUT.clone().requires_grad_()).requires_grad


def test_repr_says_what_it_is(artifact):
    start = f"Int8Model('{artifact}', kind='torch', inputs=(x: float32(batch, 8)), written by lq "
    assert repr(load(artifact)).startswith(start)


@pytest.mark.parametrize("x", [torch.ones(2, 7), torch.ones(2, 8, dtype=torch.float64)])
def test_inputs_of_another_kind_are_told_what_it_takes(artifact, x):
    got = f"float{torch.finfo(x.dtype).bits}\\(2, {x.shape[1]}\\)"
    with pytest.raises(ValueError, match=rf"\(torch\): the model was exported for \(x: float32\(batch, 8\)\), .*{got}"):
        load(artifact)(x)


def test_another_kind_than_it_has_is_named_with_those_that_it_has(artifact):
    with pytest.raises(ValueError, match=r"has no 'onnx' model; it was exported as torch\."):
        load(artifact, "onnx")
    with pytest.raises(ValueError, match=r"compile=True is for kind='pt2'; 'torch' models hold kernels already"):
        load(artifact, compile=True)


def test_an_artifact_without_int8_model_says_why(tmp_path):
    with new_directory(tmp_path / "int8", own_files) as place:
        write_manifest(place, {"artifacts": {}, "error": "no batch was seen"})
    with pytest.raises(FileNotFoundError, match=r"holds no int8 model, because it could not be made: no batch was"):
        load(tmp_path / "int8")


LOADS_ALONE = """
import sys
import torch
from lq.export.artifact.int8_model import load

print(load(sys.argv[1])(torch.linspace(-1, 1, 16).reshape(2, 8)).tolist())
unwanted = {"lightning", "pytorch_lightning", "torchvision", "matplotlib", "onnx", "torchao", "sklearn"}
print(sorted(unwanted & set(sys.modules)))
"""


def test_a_process_without_the_training_code_loads_it_without_a_word_on_stderr(artifact, int8, tmp_path):
    command = [sys.executable, "-W", "error", "-c", LOADS_ALONE, str(artifact)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    output, modules = done.stdout.splitlines()
    assert json.loads(output) == int8(INPUT).tolist()
    assert modules == "[]"


def test_prepared_state_round_trip(artifact):
    state = load_prepared_state(artifact)
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[key], STATE[key]) for key in STATE)


class Evil:
    """Pickles into a call."""

    def __reduce__(self):
        return print, ("executed",)


def test_prepared_state_executes_nothing(tmp_path):
    with new_directory(tmp_path / "a", own_files) as place:
        torch.save({"x": Evil()}, place / "prepared.pt")
        write_manifest(place, {})
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        load_prepared_state(tmp_path / "a")


def test_an_int8_model_alone_is_enough_to_deploy(artifact):
    (artifact / "prepared.pt").unlink()
    load(artifact)
    with pytest.raises(FileNotFoundError, match=r"prepared.pt is missing"):
        load_prepared_state(artifact)


@pytest.mark.parametrize("engine", [e for e in torch.backends.quantized.supported_engines if e != "none"])
def test_load_selects_the_engine_of_the_manifest(tmp_path, int8, engine):
    write(tmp_path / "int8", int8, engine=engine)
    torch.backends.quantized.engine = "x86" if engine != "x86" else "fbgemm"
    load(tmp_path / "int8")
    assert torch.backends.quantized.engine == engine


def test_an_engine_that_is_not_there_is_named_with_those_that_are(tmp_path, int8):
    write(tmp_path / "int8", int8, engine="abacus")
    with pytest.raises(ValueError, match=r"engine 'abacus', which this build of PyTorch lacks; it has .*x86"):
        load(tmp_path / "int8")


def test_a_changed_model_is_refused(artifact):
    content = bytearray((artifact / "int8.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (artifact / "int8.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"int8\.pt is not the file that was exported"):
        load(artifact)


def test_a_directory_that_is_none_of_ours_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not an lq artifact"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_prepared_state(tmp_path / "nothing")


DIES_WHILE_WRITING = """
import os, sys
from lq.export.artifact.int8_model import own_files
from tests.export.places import new_directory

with new_directory(sys.argv[1], own_files) as place:
    (place / "int8.pt").write_bytes(b"half a mod")
    os._exit(9)
"""


def test_dying_in_mid_write_leaves_the_old_artifact_loadable(artifact, int8):
    done = subprocess.run([sys.executable, "-c", DIES_WHILE_WRITING, str(artifact)], timeout=120)
    assert done.returncode == 9
    assert len(list(artifact.parent.iterdir())) == 2, "the half-written one lies beside it"
    assert torch.equal(load(artifact)(INPUT), int8(INPUT))
    write(artifact, int8)
    assert list(artifact.parent.iterdir()) == [artifact], "and the next write removes it"


def test_dying_between_the_renames_leaves_the_old_artifact_loadable(artifact, int8):
    # the state in between; tests/export/test_directory.py kills a process there
    artifact.rename(artifact.with_name(".int8.old"))
    assert torch.equal(load(artifact)(INPUT), int8(INPUT))
    assert torch.equal(load_prepared_state(artifact)["observer.max"], STATE["observer.max"])


def rewrite(directory, error, entries):
    with new_directory(directory, own_files) as place:
        (place / "int8.pt").write_bytes(b"half a mod")
        if error:
            raise error
        write_manifest(place, entries)


@pytest.mark.parametrize(("error", "entries"), [(OSError("disk full"), {}), (None, {"x": object()})])
def test_a_writer_that_fails_leaves_the_old_artifact(artifact, int8, error, entries):
    with pytest.raises((OSError, TypeError), match=r"disk full|manifest entry x"):
        rewrite(artifact, error, entries)
    assert torch.equal(load(artifact)(INPUT), int8(INPUT))
    assert list(artifact.parent.iterdir()) == [artifact]


@pytest.mark.parametrize("kind", ["file", "home", "store"])
def test_an_artifact_may_be_named_by_its_url(artifact, monkeypatch, kind):
    monkeypatch.setenv("HOME", str(artifact.parent))
    place = {"file": f"file://{artifact}", "home": "~/int8", "store": f"memory://{uuid.uuid4().hex}/int8"}[kind]
    if kind == "store":
        upload(artifact, place)
    model = load(place)
    assert torch.equal(model(INPUT), load(artifact)(INPUT))
    assert str(model.path) == (place if kind == "store" else str(artifact))
    assert load_prepared_state(place).keys() == STATE.keys()


def test_check_writable_accepts_new_empty_and_own_directories(tmp_path, artifact):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "new", tmp_path / "empty", artifact, str(artifact)):
        check_writable(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "int8"]


def test_a_directory_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"holds files that are not an lq artifact. Choose a new path"):
        check_writable(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_check_writable_names_what_is_in_the_way_of_the_exchange(tmp_path):
    (tmp_path / ".int8.old").write_text("mine")
    with pytest.raises(FileExistsError, match=r"\.int8\.old for a moment, but that path exists"):
        check_writable(tmp_path / "int8")
    assert (tmp_path / ".int8.old").read_text() == "mine"


def test_check_writable_names_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match=r"file is not a directory\. Choose another path"):
        check_writable(tmp_path / "file" / "int8")


def test_what_a_newer_version_has_written_beside_is_passed_over(artifact):
    manifest = json.loads((artifact / "lq.json").read_text())
    manifest["artifacts"] = {"hologram": {}, **manifest["artifacts"]}
    (artifact / "lq.json").write_text(json.dumps(manifest))
    assert load(artifact).kind == "torch"
    with pytest.raises(ValueError, match="'hologram', which this version of lq does not know; it knows torch, onnx"):
        load(artifact, "hologram")
