from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

from lq.export.artifact.int8_model import load
from lq.export.artifact.manifest import write_manifest
from lq.export.artifact.signature import Signature
from lq.export.exporters import chosen
from lq.export.parity.worker import Worker
from lq.metrics.outputs import floating_tensors
from lq.tracing.structure import Inputs
from tests.export.nets import TwoInputs, calibrated, example_of, images
from tests.export.places import new_directory

EXAMPLE = example_of(images(4), other=images(4, seed=3))


@pytest.fixture(scope="module")
def prepared() -> fx.GraphModule:
    return calibrated(TwoInputs(), EXAMPLE)


@pytest.fixture(scope="module")
def artifact(prepared: fx.GraphModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("artifact") / "int8"
    with torch.no_grad():
        output = prepared(*EXAMPLE[0], **EXAMPLE[1])
    with new_directory(directory) as place:
        info: dict[str, Any] = chosen(["torch"])[0].export(prepared, EXAMPLE, place)
        signature = Signature.of(prepared, EXAMPLE, output).to_dict()
        write_manifest(place, {"signature": signature, "artifacts": {"torch": info}})
    return directory


CALLS: list[Inputs] = [
    ((images(2, seed),), {"other": images(2, seed + 1), "scale": 1.0}) for seed in (5, 7)
]  # fmt: skip


def test_another_process_that_knows_nothing_of_this_one_computes_the_outputs(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(artifact)
    monkeypatch.setattr("lq.export.formats.torchscript.load", lambda *_: pytest.fail("ran here"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    before = dict(os.environ)
    with Worker() as worker:
        outputs = worker.run(artifact, "torch", CALLS)
    assert dict(os.environ) == before
    for output, (args, kwargs) in zip(outputs, CALLS, strict=True):
        expected = model(*args, **kwargs)
        main, *others = output if isinstance(output, tuple) else (output,)
        assert torch.equal(main, expected["logits"])
        assert len(others) == len(floating_tensors(expected)) - 1


def test_a_model_that_fails_there_gives_its_error_and_the_process_goes_on(artifact: Path) -> None:
    wrong: Inputs = ((images(2)[:, :1],), {"other": images(2)})
    with Worker() as worker:
        # More inputs than it reads: the model fails at the first.
        with pytest.raises(RuntimeError, match=r"a fresh process could not run .*: ValueError: .* was exported for"):
            worker.run(artifact, "torch", [wrong, *CALLS])
        first = worker.process
        assert len(worker.run(artifact, "torch", CALLS)) == 2
        assert worker.process is first


def test_a_process_that_was_killed_is_replaced(artifact: Path) -> None:
    with Worker() as worker:
        worker.run(artifact, "torch", CALLS)
        first = worker.process
        assert first is not None
        first.kill()
        first.wait()
        assert len(worker.run(artifact, "torch", CALLS)) == 2
        assert worker.process is not first
