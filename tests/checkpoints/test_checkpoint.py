"""QAT checkpoints load without callback and Trainer, into what was trained and into nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torchmetrics
from torch import Tensor, nn

import lq
from lq.backends.prepare import is_prepared, prepare, state_of
from lq.callback import QATCallback
from lq.checkpoints.checkpoint import Checkpoint, load_checkpoint
from lq.checkpoints.entry import KEY
from lq.config.qconfig import LayerQConfig, QConfig
from lq.config.specs import WeightSpec
from lq.conversion.convert import convert
from lq.lightning_module.target import find_target, is_target_prepared, prepared_graph
from lq.ptq.layers import layers_of
from tests.tiny import (
    Late,
    Tiny,
    Versioned,
    keeper,
    make_net,
    make_trainer,
    qat,
    quicken_deployment,
    train_loader,
    val_loader,
)

# A checkpoint is taken up by a trainer that keeps its own elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

QCONFIG = QConfig(overrides={"5": LayerQConfig(WeightSpec(-7, 7))})
X = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(3))


class Direct(Tiny):
    """Its layers sit on the module itself."""

    def __init__(self) -> None:
        super().__init__()
        del self.model
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.norm(self.conv(x))).flatten(1))
        return y


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(36, 3)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        y: Tensor = self.layer(x.flatten(1))
        return y if scale is None else y * scale


class Passing(Tiny):
    """Passes an argument that has a default."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Scaled()
        self.example_input_array = (torch.zeros(2, 1, 6, 6), torch.ones(1))

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
        return self.model(x, torch.full((1,), 2.0))


def trained(folder: Path, module: L.LightningModule, *callbacks: L.Callback, **kwargs: Any) -> Path:
    """The checkpoint of a short run."""
    trainer = make_trainer(folder, *callbacks, keeper(folder / "kept"), **({"max_epochs": 1} | kwargs))
    trainer.fit(module, train_loader(), val_loader())
    return folder / "kept" / "last.ckpt"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)


@pytest.mark.filterwarnings("ignore:.*Passing.forward does more than call model")  # it makes an argument of its own
@pytest.mark.parametrize("make", [Tiny, Direct, Late, Passing])
def test_into_a_fresh_lightning_module(tmp_path: Path, make: Any) -> None:
    module, callback = make(), qat()
    path = trained(tmp_path, module, callback)
    loaded = load_checkpoint(path, make())
    assert isinstance(loaded, make)
    assert not loaded.training
    graph = prepared_graph(loaded, find_target(loaded))
    assert state_of(graph).fake_quant
    with torch.no_grad():
        assert torch.equal(loaded(X), module.eval()(X))
        inputs = (X, torch.full((1,), 2.0)) if make is Passing else (X,)
        assert callback.deployment is not None
        step = float(state_of(graph).scale_zero_point()[0][-1])  # frozen TorchScript may round a tie the other way
        exported = callback.deployment.models["torch"](*inputs)
        torch.testing.assert_close(convert(graph)(*inputs), exported, rtol=0, atol=2.5 * step)


@pytest.mark.filterwarnings("ignore:.*Passing.forward does more than call model")  # it makes an argument of its own
def test_into_the_quantized_part_alone(tmp_path: Path) -> None:
    module = Passing()
    path = trained(tmp_path, module, qat())
    part = lq.load_checkpoint(path, Scaled())
    assert is_prepared(part)
    with torch.no_grad():
        assert torch.equal(part(X, torch.full((1,), 2.0)), module.eval()(X))


def test_a_module_that_is_the_target_itself_although_a_part_could_be(tmp_path: Path) -> None:
    module = Tiny()
    path = trained(tmp_path, module, QATCallback(target=""))
    loaded = load_checkpoint(path, Tiny())
    assert is_target_prepared(loaded, "")
    with torch.no_grad():
        assert torch.equal(loaded(X), module.eval()(X))
    with pytest.raises(ValueError, match=r"itself, but this run 'model'\. Use .* QATCallback\(target=''\)"):
        make_trainer(tmp_path, QATCallback(), keeper(tmp_path / "unused"), max_epochs=2).fit(
            Tiny(), train_loader(), val_loader(), ckpt_path=path
        )


def test_with_the_versions_of_its_modules(tmp_path: Path) -> None:
    module = Versioned()
    path = trained(tmp_path, module, qat())
    whole, part = load_checkpoint(path, Versioned()), load_checkpoint(path, Versioned().model)
    for loaded in (whole.model, part):
        assert torch.equal(loaded.get_submodule("6").factor, module.model.get_submodule("6").factor)


def test_versions_that_nobody_wrote_are_refused(tmp_path: Path) -> None:
    path = trained(tmp_path, Versioned(), qat())
    content = torch.load(path, weights_only=True)
    content["state_dict"]._metadata["model.6"] = 2
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"last\.ckpt\.state_dict: versions\.model\.6 is 2, but must be a mapping"):
        load_checkpoint(path, Versioned())


class Collects(Tiny):
    """Keeps what it has seen in its checkpoints, as a list of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torchmetrics.CatMetric()
        self.seen.persistent(True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.seen.update(batch[1])


def test_what_is_no_tensor_is_the_users_own(tmp_path: Path) -> None:
    module, callback = Collects(), qat()
    checkpoint = keeper(tmp_path / "best", monitor="val_loss")
    path = trained(tmp_path, module, callback, checkpoint)
    assert isinstance(torch.load(path, weights_only=True)["state_dict"]["seen.value"], list)
    assert torch.equal(load_checkpoint(path, Collects())(X), module.eval()(X))
    assert callback.deployment is not None
    assert isinstance(callback.deployment.directory, Path)
    assert json.loads((callback.deployment.directory / "lq.json").read_text())["weights"] == checkpoint.best_model_path


@pytest.mark.parametrize("callbacks", [[], [qat]])
def test_weights_that_are_no_tensors_do_not_fit(tmp_path: Path, callbacks: list[Any]) -> None:
    path = trained(tmp_path, Tiny(), *(make() for make in callbacks))
    content = torch.load(path, weights_only=True)
    content["state_dict"]["model.5.weight"] = [1.0]
    torch.save(content, path)
    checkpoint = Checkpoint.read(path)
    with pytest.raises(ValueError, match=r"(?s)last\.ckpt does not fit Tiny: .*model\.5\.weight"):
        checkpoint.load_qat(Tiny()) if callbacks else checkpoint.load_float(Tiny())
    if callbacks:
        content["state_dict"]["model.qat_state.nonfinite"] = [1]
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"nonfinite is a list, but must be a tensor"):
            Checkpoint.read(path)


def test_with_the_qconfig_of_the_run(tmp_path: Path) -> None:
    module = Tiny()
    path = trained(tmp_path, module, QATCallback(qconfig=QCONFIG))
    loaded = load_checkpoint(path, Tiny())
    layers = {layer.name: layer.module for layer in layers_of(loaded.model)}
    assert layers["5"].weight_spec == WeightSpec(-7, 7)
    with torch.no_grad():
        assert torch.equal(loaded(X), module.eval()(X))


def test_into_a_prepared_module_and_on_with_the_training(tmp_path: Path) -> None:
    path = trained(tmp_path, Tiny(), qat())
    loaded = load_checkpoint(path, load_checkpoint(path, Tiny()))
    trained(tmp_path / "again", loaded.train(), qat())
    part = load_checkpoint(path, prepare(make_net()))
    assert state_of(part).fake_quant
    with pytest.raises(ValueError, match=r"another qconfig: preset='portable' \(here 'x86_vnni'\)"):
        load_checkpoint(path, prepare(make_net(), "x86_vnni"))


def test_into_a_module_whose_memory_was_never_filled(tmp_path: Path) -> None:
    path, module = trained(tmp_path, Tiny(), qat()), Tiny()
    with torch.no_grad():
        module.model[-1].bias.fill_(torch.nan)  # as torch.empty may leave it
    loaded = load_checkpoint(path, module)
    assert torch.isfinite(loaded(X)).all()


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9])
def test_a_file_that_was_cut_off_is_told_as_damaged(tmp_path: Path, share: float) -> None:
    path = tmp_path / "float.ckpt"
    torch.save({"state_dict": {f"layer{n}": torch.rand(64, 8) for n in range(20)}}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"float\.ckpt cannot be read as a checkpoint"):
        Checkpoint.read(path)


def test_float_checkpoint_is_refused(tmp_path: Path) -> None:
    path = trained(tmp_path, Tiny())
    with pytest.raises(ValueError, match=r"last\.ckpt is a checkpoint of a float model.*train or calibrate"):
        load_checkpoint(path, Tiny())
    torch.save([1], path)
    with pytest.raises(ValueError, match="is not a Lightning checkpoint"):
        load_checkpoint(path, Tiny())


def test_weights_alone_are_told_as_that_and_load_as_is_said(tmp_path: Path) -> None:
    path = trained(tmp_path, Tiny(), qat())
    whole = load_checkpoint(path, Tiny())
    content = torch.load(path, weights_only=True)
    torch.save({"state_dict": content["state_dict"]}, path)  # as ModelCheckpoint(save_weights_only=True)
    with pytest.raises(ValueError, match=r"holds the weights of a QAT run alone, as .*save_weights_only=True"):
        load_checkpoint(path, Tiny())
    with pytest.raises(ValueError, match="is a checkpoint of a QAT run; give one of the float model"):
        Checkpoint.read(path).load_float(Tiny())
    module = Tiny().eval()
    lq.prepare(module.model, example_args=(X,))
    module.load_state_dict(torch.load(path)["state_dict"])
    assert torch.equal(module(X), whole(X))


def test_checkpoint_from_before_the_start_is_refused(tmp_path: Path) -> None:
    class Keep(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"step{trainer.global_step}.ckpt")

    trained(tmp_path, Tiny(), qat(start=1), Keep(), max_epochs=2, limit_train_batches=1)
    load_checkpoint(tmp_path / "step2.ckpt", Tiny())
    with pytest.raises(ValueError, match=r"before QAT started \(step 1\).*Choose a later checkpoint"):
        load_checkpoint(tmp_path / "step1.ckpt", Tiny())


def _wider() -> Tiny:
    module = Tiny()
    module.model[0], module.model[1] = nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8)
    module.model[5] = nn.Linear(128, 3)
    return module


def _deeper() -> Tiny:
    module = Tiny()
    module.model.append(nn.Linear(3, 3))
    return module


def _renamed() -> Tiny:
    module = Tiny()
    module.net = module.model
    del module.model
    return module


def _reordered() -> Tiny:
    module = Tiny()
    module.model[2] = nn.Sigmoid()  # no weights: only the plan tells
    return module


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_wider, r"does not fit Tiny: other shapes model\.0\.weight \(4, 1, 3, 3\) \(here \(8, 1, 3, 3\)\)"),
        (_deeper, r"does not fit Tiny: it lacks model\.6\.bias, model\.6\.weight"),
        (_renamed, r"target='model': Tiny has no such submodule"),
        (_reordered, r"another plan"),
        (Direct, r"target='model': Direct has no such submodule"),
    ],
)
def test_another_architecture_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    path = trained(tmp_path, Tiny(), qat())
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path, make())


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = trained(tmp_path, Tiny(), qat())
    saved = torch.load(path, weights_only=True)
    saved[KEY]["format_version"] += 1
    torch.save(saved, path)
    with pytest.raises(ValueError, match=r"format version 2; this lq reads version 1\. Install"):
        load_checkpoint(path, Tiny())


class Odd:
    """Hyperparameters that are no plain data."""


def test_more_than_plain_data_needs_trust(tmp_path: Path) -> None:
    class Saves(Tiny):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["odd"] = Odd()

    path = trained(tmp_path, Saves(), qat())
    with pytest.raises(ValueError, match="weights_only=False"):
        load_checkpoint(path, Tiny())
    with pytest.raises(ValueError, match="weights_only=False"):
        Checkpoint.read(path)
    assert Checkpoint.read(path, weights_only=False).entry.started
    assert not load_checkpoint(path, Tiny(), weights_only=False).training


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (QATCallback(qconfig=QCONFIG), r"another qconfig: overrides=\{\} \(here \{'5': "),
        (
            QATCallback(qconfig=QConfig(weight=WeightSpec(-31, 31))),
            r"weight=None \(here \{'quant_min': -31",
        ),
    ],
)
def test_resuming_with_other_grids_is_refused(tmp_path: Path, callback: QATCallback, message: str) -> None:
    path = trained(tmp_path, Tiny(), qat())
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, callback, keeper(tmp_path / "unused"), max_epochs=2).fit(
            Tiny(), train_loader(), val_loader(), ckpt_path=path
        )


def test_resuming_with_another_target_is_refused(tmp_path: Path) -> None:
    class Nested(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(make_net(), nn.Sequential(nn.Linear(3, 3)))

    path = trained(tmp_path, Nested(), QATCallback(target="model.0"))
    with pytest.raises(ValueError, match=r"quantizes 'model\.0', but this run 'model\.1'"):
        make_trainer(tmp_path, QATCallback(target="model.1"), keeper(tmp_path / "unused"), max_epochs=2).fit(
            Nested(), train_loader(), val_loader(), ckpt_path=path
        )


def test_a_module_whose_checkpoints_lack_keys_on_purpose(tmp_path: Path) -> None:
    class Partial(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.strict_loading = nn.Linear(2, 2), False

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            for key in [key for key in checkpoint["state_dict"] if key.startswith("frozen.")]:
                del checkpoint["state_dict"][key]

    module = Partial()
    path = trained(tmp_path, module, QATCallback())
    assert not any(key.startswith("frozen.") for key in torch.load(path, weights_only=True)["state_dict"])
    loaded = load_checkpoint(path, Partial())
    assert torch.equal(loaded.model[0].weight, module.model[0].weight)


def test_ranges_are_required_however_loosely_a_module_loads(tmp_path: Path) -> None:
    class Loose(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.strict_loading = False

    path = trained(tmp_path, Loose(), QATCallback())
    checkpoint = torch.load(path, weights_only=True)
    for key in [key for key in checkpoint["state_dict"] if ".qat_state." in key]:
        del checkpoint["state_dict"][key]
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"it lacks model\.qat_state"):
        load_checkpoint(path, Loose())
