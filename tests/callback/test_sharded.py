"""Models whose weights are split among processes by ``fully_shard``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from lq import QATCallback, QConfig, load, load_checkpoint
from lq.callback.preparation import check_still_prepared, choose_target, prepare_target
from lq.callback.processes import check_strategy
from lq.cli.weights import read_qat
from lq.deployment.evaluation import ValidationData
from tests.callback.sharded_run import LEARNED, Module, train_plainly
from tests.tiny import make_data

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed training")


@pytest.fixture(scope="module")
def both(tmp_path_factory: Any) -> Any:
    folder: Path = tmp_path_factory.mktemp("split")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests/callback/sharded_run.py"), str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=180, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    return SimpleNamespace(folder=folder, ranks=ranks)


@pytest.fixture(params=["sharded", "whole"])
def run(request: Any, both: Any) -> Any:
    """A fit that saved checkpoints of this kind."""
    ranks = [rank[request.param] for rank in both.ranks]
    return SimpleNamespace(folder=both.folder / request.param, kind=request.param, ranks=ranks)


def test_weights_are_split_and_the_artifact_is_whole(run: Any) -> None:
    first, second = run.ranks
    assert (first["local"], second["local"]) == ((3, 64), (2, 64))  # five rows of one weight
    assert first["passed"]
    assert not second["passed"]
    assert first["results"]["torch_vs_fake"]["agreement"] == 1.0
    assert {"val_loss", "accuracy"} <= first["results"]["fp32"].keys()
    assert load(run.folder / "int8")(torch.rand(5, 1, 6, 6)).shape == (5, 3)
    # The last, which was validated with frozen statistics, or one before it: never just what was left in the memory.
    weights = json.loads((run.folder / "int8" / "lq.json").read_text())["weights"]
    assert weights.endswith(".ckpt")
    assert Path(weights).is_dir() == (run.kind == "sharded")


def test_all_processes_have_the_same_weights_statistics_and_ranges(run: Any) -> None:
    first, second = run.ranks
    for key in first["state"]:
        assert torch.equal(first["state"][key], second["state"][key]), key
    assert torch.equal(torch.stack(first["ranges"]), torch.stack(second["ranges"]))
    assert torch.stack(first["ranges"]).isfinite().all()
    factors = [value for key, value in first["state"].items() if key.endswith("log_factor")]
    assert any(bool(factor.any()) for factor in factors)


def test_a_resumed_run_ends_with_the_same_weights(run: Any) -> None:
    for key, value in run.ranks[0]["state"].items():
        assert torch.equal(value, run.ranks[0]["resumed"][key]), key


def test_a_checkpoint_loads_in_one_process(run: Any) -> None:
    state, loaded = run.ranks[0]["state"], run.ranks[0]["loaded"]
    for key, value in loaded.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, state[f"model.{key}"]), key


def test_the_command_line_reads_it_into_the_module_that_splits_itself(run: Any) -> None:
    path = str(run.folder / "checkpoints" / "epoch=3.ckpt")
    module = read_qat(path, False, Module()).load_qat(Module())
    for key, value in run.ranks[0]["state"].items():
        assert torch.equal(module.state_dict()[key], value), key


def test_a_folder_of_pickles_is_read_by_who_trusts_it_alone(run: Any) -> None:
    path = run.folder / "checkpoints" / "epoch=3.ckpt"
    if run.kind == "sharded":
        with pytest.raises(ValueError, match=r"a folder of pickles.*weights_only=False"):
            load_checkpoint(path, Module().model)
        for damaged in (".metadata", "meta.pt"):
            content = (path / damaged).read_bytes()
            (path / damaged).write_bytes(b"nothing")
            with pytest.raises(ValueError, match=r"epoch=3.ckpt cannot be read as a checkpoint"):
                load_checkpoint(path, Module().model, weights_only=False)
            (path / damaged).write_bytes(content)
    else:
        load_checkpoint(path, Module().model)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14),
    reason="torch 2.8 adds up gradients under gloo, where 2.14 averages them",
)
def test_ranges_are_those_of_one_process_on_the_joined_batch(both: Any) -> None:
    one = train_plainly(0, 1, split=False).state_dict()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            # Sums in another order, and a scale that is learned from them.
            torch.testing.assert_close(both.ranks[0]["plainly"]["state"][key], value, rtol=1e-3, atol=1e-4)


def test_conversion_wants_the_whole_weights(both: Any) -> None:
    plainly = both.ranks[1]["plainly"]
    assert "lq.unsharded(module)" in plainly["refused"]
    assert plainly["output"].shape == (4, 3)


def _trainer(module: Any, tensor_parallel: int = 1) -> Any:
    """In setup, under a strategy that would start processes."""
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    strategy: Any = ModelParallelStrategy(2, tensor_parallel)
    strategy._device_mesh = {"tensor_parallel": SimpleNamespace(size=lambda: tensor_parallel)}
    trainer.strategy.connect(module)
    trainer._accelerator_connector.strategy = strategy
    return trainer


def test_tensor_parallel_training_is_refused() -> None:
    check_strategy(_trainer(Module()).strategy)
    with pytest.raises(ValueError, match=r"tensor_parallel_size is 4.*tensor_parallel_size=1\) with fully_shard"):
        check_strategy(_trainer(Module(), 4).strategy)


def test_layers_have_to_be_there_before_they_are_split() -> None:
    class Late(Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = None

        def configure_model(self) -> None:
            raise AssertionError("its layers would be split before they are planned")

    module = Late()
    with pytest.raises(ValueError, match=r"has no layer to quantize.*__init__"):
        choose_target(module, None, _trainer(module))


def _prepare(module: Any, data: Any = None) -> None:
    trainer = _trainer(module)
    trainer.state.fn = "fit"
    prepare_target(trainer, module, "model", QConfig(), ValidationData(None, None, None, None), dict)


def test_weights_have_to_be_there_before_they_are_split() -> None:
    module = Module()
    module.model.to("meta")
    with pytest.raises(ValueError, match=r"weights of model are on the meta device.*ModelParallelStrategy"):
        _prepare(module)


def test_a_configure_model_that_builds_anew_is_noticed() -> None:
    module = Module()
    module.example_input_array = make_data(4)[:2][0]
    _prepare(module)
    check_still_prepared(module, "model")
    module.model = Module().model
    with pytest.raises(ValueError, match=r"Module.configure_model\(\) built model again"):
        check_still_prepared(module, "model")
    assert isinstance(module.model, nn.Sequential)
    assert QATCallback(qconfig=LEARNED).qconfig == LEARNED
