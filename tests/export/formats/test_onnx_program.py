"""What torch.onnx cannot translate, in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from lq.export.formats.onnx import write_program
from lq.export.formats.program import float_program

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Attends(nn.Module):
    """Attention without a dimension of heads."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("mask", torch.rand(6, 6) > 0.3)
        self.register_buffer("bias", torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "causal":
            return F.scaled_dot_product_attention(x, 2 * x, -x, is_causal=True, scale=0.2)
        if self.how == "a mask of each sample":
            return F.scaled_dot_product_attention(x, 2 * x, -x, attn_mask=x @ x.mT)
        mask = {"plain": None, "mask": self.mask, "bias": self.bias}[self.how]
        return F.scaled_dot_product_attention(x, 2 * x, -x, mask)


class Marks(nn.Module):
    """Writes numbers into parts of a tensor, as shifted windows do for their mask."""

    def forward(self, x: Tensor) -> Tensor:
        mask = x.new_zeros((6, 6))
        for number, rows in enumerate((slice(0, -4), slice(-4, -2), slice(-2, None))):
            mask[rows, 1:4] = number
        mask[:, 0] = torch.arange(6)
        return x * mask


def in_onnxruntime(net: nn.Module, x: Tensor, more: Tensor, path: Path) -> tuple[Any, Tensor]:
    program, dynamic = float_program(net.eval(), ((x,), {}))
    assert dynamic
    write_program(program, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    return torch.from_numpy(out), net(more)


@pytest.mark.parametrize("how", ["plain", "mask", "bias", "causal", "a mask of each sample"])
def test_attention_of_three_dimensions(how: str, tmp_path: Path) -> None:
    out, expected = in_onnxruntime(Attends(how), torch.randn(2, 6, 8), torch.randn(5, 6, 8), tmp_path / "x.onnx")
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)  # sums in another order


@pytest.mark.parametrize("how", ["plain", "mask", "bias", "causal", "a mask of each sample"])
@pytest.mark.parametrize("inner", [(3, 2), (2, 3, 2)], ids=["windows", "windows of windows"])
def test_attention_of_five_dimensions_and_more(how: str, inner: tuple[int, ...], tmp_path: Path) -> None:
    given, more = torch.randn(2, *inner, 6, 8), torch.randn(5, *inner, 6, 8)
    out, expected = in_onnxruntime(Attends(how), given, more, tmp_path / "x.onnx")
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_numbers_written_into_parts(tmp_path: Path) -> None:
    out, expected = in_onnxruntime(Marks(), torch.randn(2, 6, 6), torch.randn(5, 6, 6), tmp_path / "x.onnx")
    assert torch.equal(out, expected)


@pytest.mark.parametrize("size", [1, 2, (1, 4, 2)])
def test_adaptive_pooling_over_three_dimensions(size: Any, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv3d(2, 3, 1), nn.AdaptiveAvgPool3d(size))
    out, expected = in_onnxruntime(net, torch.randn(2, 2, 2, 4, 8), torch.randn(3, 2, 2, 4, 8), tmp_path / "x.onnx")
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def attends(x: Tensor, **how: Any) -> Tensor:
    return F.scaled_dot_product_attention(x, 2 * x, -x, **how)


CALLS: dict[str, Any] = {
    "circular padding": lambda x: F.pad(x, (1, 2, 0, 3), mode="circular"),
    "circular padding and cutting": lambda x: F.pad(x, (-1, 2, 1, -2), mode="circular"),
    "the largest in windows of two sizes": lambda x: F.adaptive_max_pool2d(x, (5, 3)),
    "the largest in windows of one size": lambda x: F.adaptive_max_pool2d(x, (None, 4)),
    "the largest in a row": lambda x: F.adaptive_max_pool1d(x.flatten(2), 5),
    "means in windows of two sizes": lambda x: F.adaptive_avg_pool3d(x[:, None], (2, 3, 5)),
    "means in a row": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 5),
    "means along one side": lambda x: F.adaptive_avg_pool2d(x, (1, 4)),
    "cubic": lambda x: F.interpolate(x, (11, 5), mode="bicubic"),
    "cubic by factors": lambda x: F.interpolate(x, scale_factor=(0.6, 1.3), mode="bicubic"),
    "cubic from corner to corner": lambda x: F.interpolate(x, (4, 9), mode="bicubic", align_corners=True),
    "antialias": lambda x: F.interpolate(x, (3, 12), mode="bilinear", antialias=True),
    "antialias by factors": lambda x: F.interpolate(x, scale_factor=0.6, mode="bicubic", antialias=True),
    "antialias, aligned": lambda x: F.interpolate(x, 3, mode="bilinear", antialias=True, align_corners=True),
    "places": lambda x: x[:, [2, 0, -1]],
    "rows of places": lambda x: x[..., torch.tensor([[0, -2], [3, 3]])].mean(-1),
    "joined": lambda x: torch.hstack([x, -x]),
    "joined in depth": lambda x: torch.dstack([x, -x]),
    "means along one side of any size": lambda x: F.adaptive_avg_pool2d(x, (None, 1)),
    "attention of any length": lambda x: attends(x.flatten(2).mT, is_causal=True),
    "clamped": lambda x: x.clamp(-1, 0.5) + torch.clip(x, min=0, max=0.5) + (x + 1).clamp_(max=1, min=-0.5),
    "means of places": lambda x: x.flip(2).scatter_reduce(2, (3 * x).long().clamp(0, 6), x, "mean"),
    "means of places alone": lambda x: x.flip(2).scatter_reduce(
        2, (3 * x).long().clamp(0, 6), x, "mean", include_self=False
    ),
}


class Calls(nn.Module):
    """One function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.function(x)
        return out


@pytest.mark.parametrize("what", CALLS)
def test_calls_in_other_words(what: str, tmp_path: Path) -> None:
    given, more = torch.randn(2, 4, 7, 8), torch.randn(5, 4, 7, 8)
    out, expected = in_onnxruntime(Calls(CALLS[what]), given, more, tmp_path / "x.onnx")
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


NOT_OF_ANY_SIZE = ("antialias by factors", "antialias, aligned")


def write_of_any_size(net: nn.Module, path: Path) -> None:
    open_ = dict.fromkeys((0, 2, 3), Dim.AUTO)
    write_program(torch.export.export(net, (torch.randn(2, 4, 12, 14),), dynamic_shapes={"x": open_}), path)


@pytest.mark.parametrize("what", [what for what in CALLS if what not in NOT_OF_ANY_SIZE])
def test_calls_of_any_size_in_other_words(what: str, tmp_path: Path) -> None:
    net, more = Calls(CALLS[what]), torch.randn(5, 4, 19, 11)
    with torch.no_grad():
        write_of_any_size(net, tmp_path / "x.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
        (out,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), net(more), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", NOT_OF_ANY_SIZE)
def test_what_onnx_would_compute_wrongly_of_any_size_is_refused(what: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no antialiased resizing .* leave that dimension out of dynamic_axes"):
        write_of_any_size(Calls(CALLS[what]), tmp_path / "x.onnx")


def test_adaptive_pooling_to_a_size_that_is_open_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no adaptive pooling to a height, .* that dimension out of dynamic_axes"):
        write_of_any_size(Calls(lambda x: F.adaptive_avg_pool2d(x, (x.shape[2] // 2, 1))), tmp_path / "x.onnx")


def test_what_is_beyond_torch_onnx_is_refused(tmp_path: Path) -> None:
    net = Calls(lambda x: x.diagonal_scatter(x[:, :, 0, :7], 0, 2, 3))
    with pytest.raises(ValueError, match=r"no translation of aten\.diagonal_scatter: write it with other operations"):
        in_onnxruntime(net, torch.randn(2, 4, 7, 8), torch.randn(5, 4, 7, 8), tmp_path / "x.onnx")
