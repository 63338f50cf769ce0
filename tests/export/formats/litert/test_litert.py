from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec
from lq.export.artifact.signature import Signature
from lq.export.exporters import chosen
from lq.export.formats.litert import FILE
from lq.export.formats.litert.runtime import interpreted
from lq.metrics import sqnr
from tests.export.formats.litert.ran import Ran, in_litert, steps_apart
from tests.export.nets import IMAGES, Residual, TwoInputs, calibrated, example_of, images, round_trip

pytest.importorskip("ai_edge_litert")


def net() -> nn.Module:
    torch.manual_seed(0)
    return Residual()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("litert")


@pytest.fixture(scope="module")
def ran(directory: Path) -> Ran:
    return in_litert(net(), IMAGES, directory)


def again(ran: Ran, directory: Path, **options: Any) -> Ran:
    """The same net exported with options."""
    return Ran(ran.prepared, *round_trip("litert", ran.prepared, example_of(IMAGES), directory, **options))


@pytest.mark.parametrize("count", [1, 4, 50, 3])
def test_any_batch_size_gives_the_integers_of_the_reference(ran: Ran, count: int) -> None:
    expected, got = ran.outputs(images(count))
    assert steps_apart(expected, got) <= 1
    assert (expected != got).float().mean() <= 0.01, "XNNPACK rounds some ties of additions to the other side"


def test_every_layer_runs_on_integers_in_one_file(ran: Ran, directory: Path) -> None:
    assert ran.info["int8_layers"] == {"CONV_2D": 4, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 2}
    assert (ran.info["float_layers"], ran.info["float_operators"]) == ([], [])
    assert (ran.info["dynamic_batch"], ran.info["largest_batch"]) == (True, None)
    assert [file.name for file in directory.iterdir()] == [FILE]


def test_only_the_input_is_transposed(ran: Ran) -> None:
    assert ran.info["transposes"] == 1, "the flattened image stays as it lies: the weight's columns are moved"


def test_results_stay_when_the_model_is_called_again(ran: Ran) -> None:
    first = ran.model(images(4))
    kept = first.clone()
    ran.model(images(4, seed=9))
    assert torch.equal(first, kept)


class Product(nn.Module):
    """A product of matrices in float, one of which comes from integers whose zero point is 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.head = nn.Linear(32, 16), nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.left(x).softmax(-1) @ self.right(x))
        return logits


def test_a_batch_that_grows_reads_no_buffer_of_a_smaller_one(tmp_path: Path) -> None:
    x = torch.randn(32, 16, 32, generator=torch.Generator().manual_seed(0))
    ran = in_litert(Product(), x[:2], tmp_path, "tensorrt")
    for size in (1, 32, 2, 32):
        assert sqnr(*ran.outputs(x[:size])) > 40, size


INTEGERS: dict[str, Callable[[Tensor], Tensor]] = {
    "count": lambda y: (y > 0.1).sum(1),
    "quotients": lambda y: (y > 0.1).sum(1) // 2,
    "running count": lambda y: (y > 0).int().cumsum(1),
    "choice": lambda y: torch.where(y > 0, (10 * y).long(), 7),
    "truth": lambda y: y > 0,
    "bytes": lambda y: (8 * y).to(torch.int8),
}


@pytest.mark.parametrize("what", INTEGERS)
def test_integers_come_out_as_such(what: str, tmp_path: Path) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.layer(x)
            return y, INTEGERS[what](y)

    expected, got = in_litert(Counts(), torch.randn(16, 6), tmp_path).outputs(torch.randn(8, 6))
    assert got[1].dtype == expected[1].dtype
    assert torch.equal(got[1], expected[1])


def test_computing_with_the_batch_size_is_refused(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x) * x.shape[0]
            return y

    with pytest.raises(ValueError, match="depend on other samples of the batch, from mul"):
        in_litert(Scaled(), torch.randn(16, 6), tmp_path)


def test_batch_sizes_that_come_again_find_their_interpreter(
    ran: Ran, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ai_edge_litert import interpreter

    opened = []

    class Counted(interpreter.Interpreter):  # type: ignore[misc, unused-ignore]
        def __init__(self, **settings: Any) -> None:
            opened.append(settings)
            super().__init__(**settings)

    expected = {size: ran.model(images(size)) for size in (1, 4, 7)}
    monkeypatch.setattr(interpreter, "Interpreter", Counted)
    model = interpreted(directory / FILE, Signature.of(ran.prepared, example_of(IMAGES), expected[4]), 1)
    for size in (4, 1, 4, 1, 7, 4):
        assert torch.equal(model(images(size)), expected[size])
    assert len(opened) == 3
    for size in range(11, 16):
        model(images(size))
    assert len(opened) == 3 + 5
    assert torch.equal(model(images(4)), expected[4])
    assert len(opened) == 3 + 5 + 1, "interpreters of sizes that are long gone are kept"


def test_the_file_may_go_once_it_is_loaded(tmp_path: Path) -> None:
    ran = in_litert(net(), IMAGES, tmp_path)
    (tmp_path / FILE).unlink()
    assert len(ran.model(images(3))) == 3


class WithMean(nn.Module):
    """A layer, and the mean of all that it returns."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), self.layer(x).mean()


def test_an_output_may_be_a_number(tmp_path: Path) -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    expected, got = in_litert(WithMean(), x, tmp_path).outputs(x)
    assert got[1].shape == ()
    assert float(got[1]) == pytest.approx(float(expected[1]), abs=1e-5)


def test_own_kernels_are_at_most_a_step_away(ran: Ran, tmp_path: Path) -> None:
    # Their additions are in fixed point.
    assert again(ran, tmp_path, xnnpack=False).steps(images(16)) <= 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_integers_and_channels_last_at_the_ends(ran: Ran, tmp_path: Path, channels_last: bool) -> None:
    from ai_edge_litert.interpreter import Interpreter

    other = again(ran, tmp_path, inputs="int8", outputs="int8", channels_last=channels_last, full_int8=True)
    assert torch.equal(other.model(images(5)), ran.model(images(5)))
    assert other.info["transposes"] == int(not channels_last)
    interpreter = Interpreter(str(tmp_path / FILE))
    (given,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (given["dtype"].__name__, returned["dtype"].__name__) == ("int8", "int8")
    assert tuple(given["shape"]) == ((1, 8, 8, 3) if channels_last else (1, 3, 8, 8))
    assert list(given["shape_signature"]).index(-1) == 0
    kinds = {interpreter._get_op_details(i)["op_name"] for i in range(len(interpreter._get_ops_details()))}
    assert not kinds & {"QUANTIZE", "DEQUANTIZE"}


def test_names_of_inputs_and_outputs(tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    example = example_of(images(4), other=images(4, seed=3))
    prepared = calibrated(TwoInputs(), example)
    model, info = round_trip("litert", prepared, example, tmp_path)
    x, y = images(3), images(3, seed=5)
    with torch.no_grad():
        expected = prepared(x, other=y)
    got = model(other=y, image=x)
    assert got.keys() == expected.keys()
    assert steps_apart(expected["logits"], got["logits"]) == 0
    signature = Interpreter(str(tmp_path / FILE)).get_signature_list()["serving_default"]
    assert signature["inputs"] == ["image", "other"]
    assert sorted(signature["outputs"]) == ["features_0", "features_1", "logits"]
    assert [name.partition(" ")[0] for name in info["float_operators"]] == ["add", "mean", "mul"]


class Attention(nn.Module):
    """A token for the class, a block of a transformer, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.token = nn.Conv2d(3, 16, 2, stride=2), nn.Parameter(torch.randn(1, 1, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1)
        logits: Tensor = self.head(self.block(tokens)[:, 0])
        return logits


def test_attention_computes_in_float_one_sample_at_a_time(tmp_path: Path) -> None:
    ran = in_litert(Attention(), images(4), tmp_path)
    assert ran.steps(images(9)) <= 1  # sums of floats in another order, behind which values are rounded
    assert ran.info["int8_layers"] == {"CONV_2D": 1, "FULLY_CONNECTED": 5}
    assert (ran.info["dynamic_batch"], ran.info["largest_batch"]) == (False, 1)
    with pytest.raises(ValueError, match=r"full_int8=True, but these would compute in float: .*scaled_dot_product_att"):
        again(ran, tmp_path, full_int8=True)


class Tokens(nn.Module):
    """Positions are counted without the padding, and the kinds of tokens are repeated for the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions, self.kinds = nn.Embedding(9, 8), nn.Embedding(9, 8), nn.Embedding(2, 8)
        self.register_buffer("kind", torch.arange(6)[None] % 2)
        self.head = nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        words = (ids != 0).int()
        places = (words.cumsum(1) * words).long() + 1
        count, length = ids.shape
        kinds = self.kind.repeat(count, 1).gather(1, torch.arange(length).expand(count, -1))
        logits: Tensor = self.head(self.words(ids) + self.positions(places) + self.kinds(kinds))
        return logits


def test_positions_of_tokens_are_computed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ran = in_litert(Tokens(), torch.randint(9, (4, 6)), tmp_path)
    assert ran.steps(torch.randint(4, (7, 6))) == 0
    assert ran.info["largest_batch"] == 1


class Sequence(nn.Module):
    """A convolution of one dimension, its channels last, and a linear layer on each of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.strided = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(8, 8, 4, stride=2, padding=1, groups=8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.strided(F.relu(self.conv(x.flatten(2)))))
        logits: Tensor = self.head(x.transpose(1, 2))
        return logits


class Steps(nn.Module):
    """As the blocks of a diffusion model: with the number of a step, and what it rounds towards zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.of_step, self.out = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        step = (x.mean((1, 2, 3)) * 99).long()
        angles = step[:, None].float() * torch.exp(-torch.arange(4.0))
        scale = self.of_step(torch.cat([angles.sin(), angles.cos()], 1))
        logits: Tensor = self.out(F.relu(self.conv(x)) * scale[..., None, None]) * step[:, None, None, None]
        return logits


def test_types_are_changed(tmp_path: Path) -> None:
    ran = in_litert(Steps(), images(8), tmp_path)
    assert ran.steps(images(8)) <= 1


def test_sequences(tmp_path: Path) -> None:
    ran = in_litert(Sequence(), images(4), tmp_path)
    assert ran.steps(images(9)) == 0
    assert ran.info["int8_layers"] == {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1}
    assert ran.info["transposes"] == 1


@pytest.mark.parametrize(
    "qconfig", ["tensorrt", QConfig("litert", activation=ActivationSpec(0, 15))], ids=["symmetric", "4 bits"]
)
def test_activations_that_saturation_does_not_do(qconfig: QConfig | str, tmp_path: Path) -> None:
    ran = in_litert(net(), IMAGES, tmp_path, qconfig)
    assert ran.info["float_operators"] == []
    assert ran.steps(images(16)) == 0


class Between(nn.Module):
    """A function between two convolutions."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.function, self.last = nn.Conv2d(3, 8, 3), function, nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


@pytest.mark.parametrize(
    "function",
    [torch.sigmoid, torch.tanh, lambda x: x.softmax(1), lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")],
    ids=["sigmoid", "tanh", "softmax", "bilinear"],
)
@pytest.mark.parametrize("bits", [4, 8])
def test_what_rounds_twice_runs_in_float_where_steps_are_large(function: Any, bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    qconfig = QConfig("litert", activation=ActivationSpec(0, 2**bits - 1), keep="nothing")
    ran = in_litert(Between(function), IMAGES, tmp_path, qconfig)
    assert len(ran.info["float_operators"]) == (bits == 4)
    expected, got = ran.outputs(images(8))
    assert sqnr(expected, got) > (100 if bits == 4 else 35)


@pytest.mark.parametrize(("name", "options"), [("resnet18", {}), ("mobilenet_v2", {"width_mult": 0.25})])
def test_torchvision_is_transposed_at_the_input_only(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    ran = in_litert(models.get_model(name, **options), x, tmp_path, "litert", full_int8=True)
    assert ran.info["transposes"] == 1
    assert ran.model(x[:2]).shape == (2, 1000)


def test_options_are_checked_at_once() -> None:
    with pytest.raises(ValueError, match=r"inputs='uint8' must be 'float32' or 'int8'"):
        chosen([{"litert": {"inputs": "uint8"}}])
    with pytest.raises(ValueError, match=r"exporter 'litert' has no option opset; it has full_int8, inputs, out"):
        chosen([{"litert": {"opset": 3}}])


class Ends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(self.conv(x)) + x.mean()


@pytest.mark.parametrize(("option", "message"), [
    ("inputs", r"inputs='int8': input 'x' is also read in float, so .*write inputs='float32'"),
    ("outputs", r"outputs='int8': output 'output' is not rounded to integers in the training"),
])  # fmt: skip
def test_ends_in_float_cannot_be_integers(option: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        in_litert(Ends(), images(4), tmp_path, **{option: "int8"})


@pytest.mark.parametrize("lowest", [-8, -128])
def test_an_input_of_few_bits_may_come_as_integers(lowest: int, tmp_path: Path) -> None:
    few = QConfig("litert", activation=ActivationSpec(lowest, -lowest - 1), keep="nothing")
    ran = in_litert(net(), IMAGES, tmp_path, few, inputs="int8", outputs="int8", full_int8=True)
    expected, got = ran.outputs(images(4))
    assert steps_apart(expected, got) <= 1
    assert (expected != got).float().mean() <= 0.1


def test_an_operation_without_operator_is_named(tmp_path: Path) -> None:
    class Strange(Ends):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cummax(self.conv(x), 1).values

    with pytest.raises(ValueError, match=r"LiteRT has no operator for cummax"):
        in_litert(Strange(), images(4), tmp_path)


def test_what_tensors_share_is_written_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    channels = 512
    net = nn.Sequential(nn.Conv2d(3, 8, 1), *(nn.Conv2d(8, 8, 1) for _ in range(2)), nn.Conv2d(8, channels, 1))
    in_litert(net, IMAGES, tmp_path)
    weights = sum(p.numel() for p in net.parameters() if p.dim() > 1)
    # For each channel a bias, its scale and that of the weight; zero points of eight bytes once for both.
    parameters = weights + channels * (4 + 4 + 4 + 8)
    assert (tmp_path / FILE).stat().st_size < parameters + 5_000, "names, shapes and operators of four layers"


@pytest.mark.parametrize("content", [b"", b"half a mod", b"\x1c\0\0\0TFL3" + b"\0" * 100])
def test_bytes_that_are_no_model_are_named(content: bytes, ran: Ran, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    signature = Signature.of(ran.prepared, example_of(IMAGES), ran.model(IMAGES))
    with pytest.raises(ValueError, match=rf"{FILE} cannot be loaded by LiteRT"):
        interpreted(tmp_path / FILE, signature, 1)
