from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec
from lq.export.formats.openvino import FILE, WEIGHTS
from lq.metrics import sqnr
from tests.export.nets import TwoInputs, calibrated, example_of, images, residual, round_trip

pytest.importorskip("openvino")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[fx.GraphModule, Any, dict[str, Any], Path]:
    prepared, directory = residual(), tmp_path_factory.mktemp("openvino")
    return prepared, *round_trip("openvino", prepared, example_of(images(4)), directory), directory


Exported = tuple[fx.GraphModule, Any, dict[str, Any], Path]


@pytest.mark.parametrize("count", [1, 4, 50])
def test_any_batch_size_agrees_with_the_prepared_model(exported: Exported, count: int) -> None:
    prepared, model, _, _ = exported
    with torch.no_grad():
        expected = prepared(images(count))
    # 48 dB over 50 samples: it adds the residual before the branch is rounded.
    assert sqnr(expected, model(images(count))) >= 30


def test_threads_may_call_one_model(exported: Exported) -> None:
    model, batches = exported[1], [images(8, seed=seed) for seed in range(4)]
    expected = [model(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for got, wanted in zip(pool.map(model, batches), expected, strict=True):
                assert torch.equal(got, wanted)


def test_every_layer_runs_on_integers(exported: Exported) -> None:
    _, _, info, directory = exported
    assert info["int8_layers"] == {"Convolution": 5, "FullyConnected": 2}
    assert info["float_layers"] == []
    assert info["dynamic_batch"] is True
    assert sorted(file.name for file in directory.iterdir()) == sorted([FILE, WEIGHTS])


def test_what_runs_in_float_has_its_name_in_the_plan(tmp_path: Path) -> None:
    """OpenVINO makes several nodes of a grouped transposed convolution, which some CPUs have no int8 kernel for."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
            self.up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.relu(self.up(F.relu(self.first(x)))))

    x = images(4)
    _, info = round_trip("openvino", calibrated(Decoder(), example_of(x)), example_of(x), tmp_path)
    assert {name.partition(" ")[0] for name in info["float_layers"]} <= {"up"}


def test_weights_take_a_byte_each(exported: Exported) -> None:
    prepared, _, _, directory = exported
    layers = [p.numel() for p in prepared.parameters() if p.dim() > 1]
    rest = sum(p.shape[0] * 12 for p in prepared.parameters() if p.dim() > 1)  # scale, zero point, bias of a channel
    assert (directory / WEIGHTS).stat().st_size < sum(layers) + rest + 1000


def test_results_stay_when_the_model_is_called_again(exported: Exported) -> None:
    model = exported[1]
    first = model(images(4))
    kept = first.clone()
    model(images(4, seed=9))
    assert torch.equal(first, kept)


class Patches(nn.Module):
    """A convolution and linear layers with equally many channels, whose zero points an exporter may share."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up = nn.Conv2d(3, 16, 2, stride=2), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.up(F.gelu(self.embed(x).flatten(2).transpose(1, 2)))
        return tokens


def test_layers_of_equal_width_stay_on_integers(tmp_path: Path) -> None:
    prepared = calibrated(Patches(), example_of(images(4)))
    model, info = round_trip("openvino", prepared, example_of(images(4)), tmp_path)
    assert info["int8_layers"] == {"Convolution": 1, "FullyConnected": 1}
    with torch.no_grad():
        assert sqnr(prepared(images(9)), model(images(9))) >= 30


@pytest.mark.parametrize("largest", [15, 63, 127])
def test_the_lowest_value_of_few_bits_stays_where_it_is_only_moved(largest: int, tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 1), nn.Flatten(0))
    x = torch.randn(300, 6)
    few = QConfig("openvino", activation=ActivationSpec(0, largest), keep="nothing")
    prepared = calibrated(net, example_of(x[:8]), few)
    model, _ = round_trip("openvino", prepared, example_of(x[:8]), tmp_path)
    with torch.no_grad():
        expected, got = prepared(x), model(x)
    assert (expected == expected.min()).sum() > 3, "values below the range"
    torch.testing.assert_close(got, expected)


def test_two_inputs_and_a_dict(tmp_path: Path) -> None:
    example = example_of(images(4), other=images(4, seed=3))
    prepared = calibrated(TwoInputs(), example)
    model, info = round_trip("openvino", prepared, example, tmp_path)
    x, y = images(3), images(3, seed=5)
    with torch.no_grad():
        expected = prepared(x, other=y)
    got = model(other=y, image=x)
    assert got.keys() == expected.keys()
    assert sqnr(expected["logits"], got["logits"]) >= 30
    assert info["float_layers"] == []


MODELS_THAT_COME_AND_GO = """
import gc, signal, subprocess, sys
from pathlib import Path
from lq.export.formats.openvino import compiled_model

signal.signal(signal.SIGCHLD, lambda *_: print("a child ended"))  # as torch's DataLoader does for its workers
first, second = (compiled_model(Path(sys.argv[1]), None, 1) for _ in range(2))
del first
gc.collect()
del second
gc.collect()
subprocess.run([sys.executable, "-c", ""])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGCHLD")
def test_signals_still_arrive_when_models_have_gone(exported: Exported) -> None:
    command = [sys.executable, "-c", MODELS_THAT_COME_AND_GO, str(exported[3] / FILE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"died of signal {-done.returncode}: {done.stderr}"
    assert "a child ended" in done.stdout
