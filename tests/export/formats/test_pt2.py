from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn

from lq.export.formats import pt2
from lq.metrics import sqnr
from tests.export.nets import TwoInputs, calibrated, example_of, images, residual, round_trip

EXAMPLE = example_of(images(4))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[fx.GraphModule, Any, Path]:
    prepared, directory = residual(), tmp_path_factory.mktemp("pt2")
    model, info = round_trip("pt2", prepared, EXAMPLE, directory)
    assert info["dynamic_batch"] is True
    return prepared, model, directory / pt2.FILE


@pytest.mark.parametrize("count", [1, 16])
def test_the_program_computes_what_was_trained(exported: tuple[fx.GraphModule, Any, Path], count: int) -> None:
    prepared, model, _ = exported
    with torch.no_grad():
        torch.testing.assert_close(model(images(count)), prepared(images(count)))


def test_weights_are_stored_as_int8_under_their_names(exported: tuple[fx.GraphModule, Any, Path]) -> None:
    state = torch.export.load(exported[2]).state_dict
    weights = {name: tensor.dtype for name, tensor in state.items() if name.endswith(".weight")}
    assert weights.keys() >= {"stem.weight", "head.weight"}
    assert set(weights.values()) == {torch.int8}


def test_keywords_in_any_order(tmp_path: Path) -> None:
    example = example_of(other=images(4, seed=3), image=images(4))
    prepared = calibrated(TwoInputs(), example)
    model = round_trip("pt2", prepared, example, tmp_path)[0]
    x, y = images(3), images(3, seed=5)
    with torch.no_grad():
        expected = prepared(x, other=y)["logits"]
        for got in (model(x, other=y), model(other=y, image=x)):
            torch.testing.assert_close(got["logits"], expected)


class Found(NamedTuple):
    scores: Tensor
    boxes: Tensor


class Finds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scores, self.boxes = nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Found:
        return Found(self.scores(x), self.boxes(x))


def test_a_named_tuple_comes_back_as_a_tuple(tmp_path: Path) -> None:
    example = example_of(torch.rand(4, 4))
    prepared = calibrated(Finds(), example)
    model = round_trip("pt2", prepared, example, tmp_path)[0]
    x = torch.rand(3, 4)
    with torch.no_grad():
        expected, got = prepared(x), model(x)
    assert isinstance(expected, Found)
    torch.testing.assert_close(got, tuple(expected))


def test_what_the_program_would_not_read_is_refused(exported: tuple[fx.GraphModule, Any, Path]) -> None:
    with pytest.raises(ValueError, match="but was called with 2 tensors"):
        exported[1](images(2), images(2))


WITHOUT_LQ = """
import sys
import torch
import torch.ao.quantization.fx._decomposed

try:
    import lq
except ImportError:
    program = torch.export.load(sys.argv[1])
    torch.save(program.module()(torch.load(sys.argv[2])), sys.argv[3])
"""


def test_a_process_without_lq_loads_it(exported: tuple[fx.GraphModule, Any, Path], tmp_path: Path) -> None:
    prepared, _, file = exported
    torch.save(images(3), tmp_path / "x.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # -I: neither the working directory nor the user's packages; an installed lq is hidden by a broken one before it.
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "lq.py").write_text("raise ImportError('hidden')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'hidden')!r})\n{WITHOUT_LQ}"
    command = [sys.executable, "-I", "-c", code, str(file), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "y.pt"), prepared(images(3)))


def test_lowered_it_runs_on_int8_kernels_and_agrees_at_every_batch_size(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    from torch._inductor.utils import run_and_get_code

    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
    prepared = calibrated(net, EXAMPLE)
    lowered = pt2.lower(round_trip("pt2", prepared, EXAMPLE, tmp_path)[0])
    for count in (1, 16):
        got, sources = run_and_get_code(lowered, images(count))
        with torch.no_grad():
            assert sqnr(prepared(images(count)), got) >= 35  # infinite where this was written
        code = "".join(sources)
        assert code.count("qconv_pointwise") >= 2
        assert code.count("qlinear_pointwise") >= 1
        assert "addmm" not in code
        assert "extern_kernels.convolution" not in code


def test_without_torchao_the_line_that_installs_it(
    exported: tuple[fx.GraphModule, Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer", None)
    with pytest.raises(ImportError, match=r"need torchao: pip install 'lightning-qat\[pt2\]'"):
        pt2.lower(exported[1])


def test_a_file_does_not_hold_its_example(tmp_path: Path) -> None:
    example: Any = (torch.rand(1000, 1000),), {}  # 4 MB
    round_trip("pt2", calibrated(nn.Sequential(nn.Linear(1000, 1)), example), example, tmp_path)
    assert (tmp_path / "int8.pt2").stat().st_size < 1_000_000
