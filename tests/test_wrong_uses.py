"""Wrong uses of the functions, and what they get: what came, what is allowed, what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lq

X = torch.rand(16, 4)
NAN = float("nan")


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def prepared() -> nn.Module:
    made = lq.prepare(net(), example_args=(X,))
    lq.calibrate(made, [X], show_progress=False)
    return made


def diverged() -> nn.Module:
    made = net()
    nn.init.constant_(made[2].bias, NAN)
    return made


def prepared_only() -> nn.Module:
    return lq.prepare(net(), example_args=(X,))


def diverged_later() -> nn.Module:
    made = prepared()
    nn.init.constant_(made.get_parameter("2.bias"), NAN)
    return made


def diverged_statistics() -> nn.Module:
    made = lq.prepare(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), example_args=(X,))
    lq.calibrate(made, [X], show_progress=False)
    nn.init.constant_(made.get_buffer("1.running_var"), NAN)
    return made


class Branches(nn.Module):
    """Is planned at its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) if bool(x.sum() > 0) else x


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an artifact, a checkpoint that is none, and files of the user's own."""
    folder = tmp_path_factory.mktemp("place")
    lq.export_artifact(prepared(), [X], folder / "good")
    (folder / "file").write_text("x")
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("x")
    torch.save(net().state_dict(), folder / "float.pt")
    torch.save(net(), folder / "whole.pt")
    (folder / "damaged.ckpt").write_bytes(b"12345")
    (folder / "code.yaml").write_text("{preset: !!python/name:os.system }")
    (folder / "broken.yaml").write_text("preset: [x")
    (folder / "deep.yaml").write_text("[" * 5000)
    (folder / "huge.yaml").write_text("calibration: " + "9" * 5000)
    (folder / "list.yaml").write_text("- portable")
    return folder


Use = Callable[[Path], Any]
CASES: dict[str, tuple[Use, str]] = {
    # ---- prepare
    "prepare a class": (lambda _: lq.prepare(nn.Linear), r"is a class; give an instance, module=Linear\(\.\.\.\)"),
    "prepare a function": (lambda _: lq.prepare(torch.relu), "must be a torch.nn.Module, but is a builtin_function"),
    "prepare a tensor": (lambda _: lq.prepare(X), "must be a torch.nn.Module, but is a Tensor"),
    "prepare nothing": (lambda _: lq.prepare(None), "must be a torch.nn.Module, but is a NoneType"),
    "prepare a path": (lambda _: lq.prepare("model.pt"), "must be a torch.nn.Module, but is a str"),
    "prepare a state dict": (lambda _: lq.prepare(net().state_dict()), r"module\.load_state_dict\(\.\.\.\)"),
    "prepare a wrapper": (
        lambda _: lq.prepare(nn.DataParallel(net())),
        r"Prepare that one, module.module, before it is wrapped \(.*test_wrong_uses.py:\d+\)",
    ),
    "prepare compiled code": (lambda _: lq.prepare(torch.compile(net())), r"torch\.compile\(lq\.prepare\(net\)\)"),
    "prepare an int8 model": (lambda _: lq.prepare(lq.convert(prepared())), "is an int8 model, from lq.convert"),
    "prepare a diverged model": (lambda _: lq.prepare(diverged()), "2.bias of Sequential holds NaN or infinity"),
    "prepare no layers": (lambda _: lq.prepare(nn.Sequential(nn.ReLU())), "has no quantizable layer"),
    "example: a tensor": (lambda _: lq.prepare(net(), example_args=X), r"give a tuple .*example_args=\(x,\)"),
    "example: keywords in a list": (lambda _: lq.prepare(net(), example_kwargs=[X]), "give a mapping of names"),
    "example: other shape": (
        lambda _: lq.prepare(net(), example_args=(torch.rand(2, 5),)),
        r"cannot be called with the example: .*2x5 and 4x8",
    ),
    "example: too many": (lambda _: lq.prepare(net(), example_args=(X, X)), "do not fit Sequential.forward: too many"),
    "example: integers": (lambda _: lq.prepare(net(), example_args=(X.long(),)), "got Long and Float"),
    "example: another name": (lambda _: lq.prepare(net(), example_kwargs={"y": X}), "missing a required argument"),
    "example: an array": (lambda _: lq.prepare(net(), example_args=(X.numpy(),)), "must be Tensor, not numpy.ndarray"),
    "example: empty": (lambda _: lq.prepare(net(), example_args=()), "missing a required argument: 'input'"),
    "example: other precision": (lambda _: lq.prepare(net().half(), example_args=(X,)), "got Float and Half"),
    "qconfig: bits": (lambda _: lq.prepare(net(), 8), "must be a preset's name or a QConfig, got int: 8"),
    "qconfig: torch's": (
        lambda _: lq.prepare(net(), torch.ao.quantization.get_default_qconfig()),
        r"must be a preset's name or a QConfig, got torch.ao's QConfig\. Write lq\.QConfig\(weight=",
    ),
    "qconfig: nothing left": (lambda _: lq.prepare(net(), lq.QConfig(exclude=("*",))), "shorten exclude"),
    "qconfig: no such layer": (lambda _: lq.prepare(net(), lq.QConfig(exclude=("fc",))), "matches no module"),
    "qconfig: another one": (lambda _: lq.prepare(prepared(), "x86_vnni"), "another qconfig"),
    # ---- calibrate, convert, phases
    "calibrate float": (lambda _: lq.calibrate(net(), [X]), "not prepared for QAT; call lq.prepare"),
    "calibrate a tensor": (lambda _: lq.calibrate(prepared(), X), r"batches is a Tensor; give several.*\[x\]"),
    "calibrate a dict": (lambda _: lq.calibrate(prepared(), {"x": X}), "batches is a dict; give several"),
    "calibrate nothing": (lambda _: lq.calibrate(prepared(), None), "batches is a NoneType; give several"),
    "calibrate a name": (lambda _: lq.calibrate(prepared(), "data"), "batches is a str; give several"),
    "calibrate empty": (lambda _: lq.calibrate(prepared(), []), "got no batch: the data loader is empty"),
    "calibrate NaN": (lambda _: lq.calibrate(prepared(), [X * NAN]), "met NaN or infinity in 3 of 3 tensors"),
    "calibrate numbers": (lambda _: lq.calibrate(prepared(), [1, 2]), "the batch, int, has no tensor"),
    "calibrate: limit 0": (lambda _: lq.calibrate(prepared(), [X], limit=0), "limit=0 must be at least 1"),
    "calibrate: limit of text": (lambda _: lq.calibrate(prepared(), [X], limit="9"), "limit='9' .* whole number"),
    "calibrate: call of text": (
        lambda _: lq.calibrate(prepared(), [X], call="forward"),
        "call='forward' is not a func",
    ),
    "convert float": (lambda _: lq.convert(net()), "not prepared for QAT; call lq.prepare"),
    "convert nothing": (lambda _: lq.convert(None), "NoneType is not prepared for QAT"),
    "convert too early": (lambda _: lq.convert(lq.prepare(net(), example_args=(X,))), "there are no ranges"),
    "convert a diverged model": (lambda _: lq.convert(diverged_later()), "2.bias of Sequential holds NaN or infinity"),
    "convert diverged statistics": (
        lambda _: lq.convert(diverged_statistics()),
        "1.running_var of Sequential holds NaN",
    ),
    "export a diverged model": (
        lambda p: lq.export_artifact(diverged_later(), [X], p / "a"),
        "2.bias of the model holds NaN or infinity, .*before the training diverged",
    ),
    "convert uncalled": (lambda _: lq.convert(lq.prepare(Branches())), "no ranges|has not been called"),
    "plan of float": (lambda _: lq.plan_of(net()), "not prepared for QAT"),
    "plan before the first call": (lambda _: lq.plan_of(lq.prepare(Branches())), "Call it once, or give lq.prepare"),
    "phase of float": (
        lambda _: lq.set_phase(net(), fake_quant=True, observer=True, freeze_bn=False),
        "not prepared for QAT",
    ),
    "phase of text": (
        lambda _: lq.set_phase(prepared(), fake_quant="yes", observer=True, freeze_bn=False),
        "fake_quant='yes' .* neither True nor False",
    ),
    # ---- export
    "export float": (lambda p: lq.export_artifact(net(), [X], p / "a"), "not prepared for QAT"),
    "bits of a number": (lambda p: lq.choose_bits(3, [X]), "model must be a torch.nn.Module, but is an int"),
    "bits of nothing": (lambda p: lq.choose_bits(net(), [], "portable"), "auto_bits got no batch"),
    "bits of a number of bits": (
        lambda p: lq.choose_bits(net(), [X], options=4),
        "must be a budget, e.g. 'effective_bits=4'",
    ),
    "bits without a unit": (lambda p: lq.choose_bits(net(), [X], options="size=2.5"), "has no unit; write size=2.5MB"),
    "attention of 4 bits": (lambda p: lq.QConfig(attention="int4"), r"Choose one of \['float', 'int8'\]"),
    "recurrence true": (lambda p: lq.QConfig(recurrence=True), r"Choose one of \['float', 'int8'\]"),
    "range the wrong way round": (lambda p: lq.ActivationSpec(fixed_range=(1, 0)), "must be the lower end first"),
    "range without 0": (lambda p: lq.ActivationSpec(fixed_range=(1, 2)), "must hold 0"),
    "range without an end": (lambda p: lq.ActivationSpec(fixed_range=(0, float("inf"))), "must end somewhere"),
    "range known and learned": (
        lambda p: lq.ActivationSpec(fixed_range=(0, 1), learned_scale=True),
        "a range is known or learned",
    ),
    "qconfig of a missing file": (lambda p: lq.prepare(net(), "bits/bits.yaml"), "no such file. .*lq bits"),
    "qconfig of a file with code": (
        lambda p: lq.prepare(net(), str(p / "code.yaml")),
        "no YAML file of plain settings",
    ),
    "qconfig of a broken file": (lambda p: lq.prepare(net(), str(p / "broken.yaml")), "no YAML file of plain settings"),
    "qconfig of a deep file": (lambda p: lq.prepare(net(), str(p / "deep.yaml")), "no YAML file of plain settings"),
    "qconfig of a huge number": (lambda p: lq.prepare(net(), str(p / "huge.yaml")), "no YAML file of plain settings"),
    "qconfig of a list": (lambda p: lq.prepare(net(), str(p / "list.yaml")), "must be a QConfig, or a mapping"),
    "export a number": (
        lambda p: lq.export_artifact(3, [X], p / "a"),
        "prepared must be a torch.nn.Module, but is an int",
    ),
    "export no batches": (lambda p: lq.export_artifact(prepared(), [], p / "a"), "batches is empty"),
    "export of a dict": (
        lambda p: lq.export_artifact(prepared(), [{"input": X, "mask": X}], p / "a"),
        "Sequential cannot be called with|does not fit Sequential.forward",
    ),
    "export another width": (
        lambda p: lq.export_artifact(prepared(), [torch.rand(16, 7)], p / "a"),
        r"cannot be called with inputs of the shapes \(16, 7\): RuntimeError: .* Give such as it was prepared",
    ),
    "export no sample": (lambda p: lq.export_artifact(prepared(), [X[:0]], p / "a"), "a batch has no sample"),
    "calibrate no sample": (lambda _: lq.calibrate(prepared_only(), [X[:0]]), "batches have to hold samples"),
    "export a tensor": (lambda p: lq.export_artifact(prepared(), X, p / "a"), "batches is a Tensor; give several"),
    "export too early": (
        lambda p: lq.export_artifact(lq.prepare(net(), example_args=(X,)), [X], p / "a"),
        "there are no ranges",
    ),
    "export as something else": (
        lambda p: lq.export_artifact(prepared(), [X], p / "a", ["tflite"]),
        "unknown exporter",
    ),
    "export as nothing": (lambda p: lq.export_artifact(prepared(), [X], p / "a", []), "would leave no model; write"),
    "export as text": (lambda p: lq.export_artifact(prepared(), [X], p / "a", "onnx"), r"write \['onnx'\]"),
    "export nowhere": (lambda _: lq.export_artifact(prepared(), [X], None), "must be a path or a URL"),
    "export to no name": (lambda _: lq.export_artifact(prepared(), [X], ""), "directory='' .* must be a path or a URL"),
    "export to a number": (lambda _: lq.export_artifact(prepared(), [X], 5), r"directory=5 \(int\) must be a path"),
    "export onto a file": (lambda p: lq.export_artifact(prepared(), [X], p / "file"), "is not a directory. Choose"),
    "export onto own files": (lambda p: lq.export_artifact(prepared(), [X], p / "mine"), "not an lq artifact. Choose"),
    "export: gate of a number": (
        lambda p: lq.export_artifact(prepared(), [X], p / "a", gate=0.9),
        "gate=0.9 .* must be a Gate",
    ),
    "export: float class": (
        lambda p: lq.export_artifact(prepared(), [X], p / "a", float_model=nn.Linear),
        "float_model=.* is a class",
    ),
    # ---- load and call
    "load nothing there": (lambda p: lq.load(p / "nothing"), "does not exist. Give the directory"),
    "load a file": (lambda p: lq.load(p / "file"), "is a file; give the artifact's directory"),
    "load its lq.json": (lambda p: lq.load(p / "good" / "lq.json"), "is a file; give the artifact's directory"),
    "load own files": (lambda p: lq.load(p / "mine"), "is not an lq artifact: it has no lq.json"),
    "load None": (lambda _: lq.load(None), "directory=None .* must be a path or a URL"),
    "load a number": (lambda _: lq.load(5), "directory=5 .* must be a path or a URL"),
    "load another kind": (lambda p: lq.load(p / "good", "onnx"), "has no 'onnx' model; it was exported as torch"),
    "load a list of kinds": (lambda p: lq.load(p / "good", ["torch"]), "must be the name of an exporter"),
    "load: no threads": (lambda p: lq.load(p / "good", threads=0), "threads=0 must be at least 1"),
    "load: threads of text": (lambda p: lq.load(p / "good", threads="2"), "threads='2' .* whole number"),
    "call with two": (lambda p: lq.load(p / "good")(X, X), r"takes \(input: .*but was called with 2 tensors"),
    "call with none": (lambda p: lq.load(p / "good")(), r"was called without input\."),
    "call with another shape": (lambda p: lq.load(p / "good")(torch.rand(2, 5)), r"but input is float32\(2, 5\)"),
    "call with integers": (lambda p: lq.load(p / "good")(X.long()), r"but input is int64\(16, 4\)"),
    "call with one sample": (lambda p: lq.load(p / "good")(X[0]), r"but input is float32\(4,\)"),
    "call with an array": (lambda p: lq.load(p / "good")(X.numpy()), r"takes tensors: torch\.as_tensor"),
    "call by another name": (lambda p: lq.load(p / "good")(z=X), r"was called with z="),
    # ---- checkpoints
    "checkpoint: none there": (lambda p: lq.load_checkpoint(p / "no.ckpt", net()), "there is no checkpoint"),
    "checkpoint: a directory": (lambda p: lq.load_checkpoint(p, net()), "there is no checkpoint"),
    "checkpoint: a state dict": (lambda p: lq.load_checkpoint(p / "float.pt", net()), "it has no 'state_dict'"),
    "checkpoint: a module": (lambda p: lq.load_checkpoint(p / "whole.pt", net()), "more than plain data"),
    "checkpoint: damaged": (lambda p: lq.load_checkpoint(p / "damaged.ckpt", net()), "or it is damaged"),
    "checkpoint: None": (lambda _: lq.load_checkpoint(None, net()), "path=None .* must be a path"),
    "checkpoint: exchanged": (
        lambda p: lq.load_checkpoint(net(), p / "float.pt"),
        r"path \(Sequential\) must be a path",
    ),
    # ---- post-training quantization
    "static: no batches": (lambda _: lq.quantize_static(net(), []), "got no batch"),
    "static: a tensor": (lambda _: lq.quantize_static(net(), X), "batches is a Tensor; give several"),
    "static: a class": (lambda _: lq.quantize_static(nn.Linear, [X]), "model=.* is a class"),
    "static: prepared": (lambda _: lq.quantize_static(prepared(), [X]), "is prepared already"),
    "static: unknown option": (lambda _: lq.quantize_static(net(), [X], options={"bn": True}), "no setting 'bn'"),
    "static: limit 0": (lambda _: lq.StaticOptions(limit=0), "limit=0 must be at least 1"),
    "static: option of text": (lambda _: lq.StaticOptions(bias="yes"), "bias='yes' .* neither True nor False"),
    "static: target of a net": (
        lambda _: lq.quantize_static(net(), [X], options=lq.StaticOptions(target="0")),
        r"give the part itself, model\.get_submodule\('0'\)",
    ),
    "dynamic: no such layer": (lambda _: lq.quantize_dynamic(nn.Sequential(nn.Conv2d(1, 1, 1))), "quantize_static"),
    "dynamic: other layers": (lambda _: lq.quantize_dynamic(net(), ["Conv2d"]), "must be a list of some of"),
    "dynamic: nothing": (lambda _: lq.quantize_dynamic(net(), []), "must be a list of some of"),
    "dynamic: text": (lambda _: lq.quantize_dynamic(net(), "Linear"), "must be a list of some of"),
    "dynamic: engine": (lambda _: lq.quantize_dynamic(net(), engine="trt"), "is not one of this build of PyTorch"),
    "dynamic: a path": (lambda _: lq.quantize_dynamic("net.pt"), "must be a torch.nn.Module, but is a str"),
    # ---- bench
    "bench: none there": (lambda p: lq.bench(p / "nothing"), "does not exist"),
    "bench: a number": (lambda p: lq.bench(5), r"directory=5 \(int\) must be a path"),
    "bench: batch 0": (lambda p: lq.bench(p / "good", batch_sizes=(0,)), "one or more numbers from 1 up"),
    "bench: text": (lambda p: lq.bench(p / "good", batch_sizes="1"), "one or more numbers from 1 up"),
    "bench: no size": (lambda p: lq.bench(p / "good", batch_sizes=()), "one or more numbers from 1 up"),
    "bench: no threads": (lambda p: lq.bench(p / "good", threads=0), "threads=0 must be"),
    "bench: no time": (lambda p: lq.bench(p / "good", min_time=0), "must be above 0 seconds"),
    "bench: NaN": (lambda p: lq.bench(p / "good", min_time=NAN), "min_time=nan is not a number"),
    "bench: a class": (lambda p: lq.bench(p / "good", nn.Linear), "float_model=.* is a class"),
    # ---- grids
    "weights that are not symmetric": (lambda _: lq.WeightSpec(-8, 7), "write quant_min=-7, quant_max=7"),
    "weights upside down": (lambda _: lq.WeightSpec(7, -7), "must be below"),
    "weights of too many bits": (lambda _: lq.WeightSpec(-300, 300), "2 to 8 bits are supported"),
    "activations upside down": (lambda _: lq.ActivationSpec(255, 0), "must be below"),
    "activations of too many bits": (lambda _: lq.ActivationSpec(0, 70000), "2 to 8 bits are supported"),
    "activations of one value": (lambda _: lq.ActivationSpec(0, 0), "must be below"),
    "symmetric without a sign": (lambda _: lq.ActivationSpec(0, 255, symmetric=True), "needs a signed range"),
    "an average of nothing": (lambda _: lq.ActivationSpec(averaging_constant=0), r"must lie in \(0, 1\]"),
    "more than all": (lambda _: lq.ActivationSpec(percentile=101), r"must lie in \(50, 100\]"),
}


@pytest.mark.parametrize("use", CASES)
def test_it_is_answered_with_what_to_write_instead(use: str, place: Path) -> None:
    wrong, said = CASES[use]
    before = sorted(path.name for path in place.iterdir())
    with pytest.raises((TypeError, ValueError, OSError, RuntimeError), match=said):
        wrong(place)
    left = {path.name for path in place.iterdir()} - set(before)
    assert not left or use == "export too early", f"left behind: {left}"
