from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.backends.prepare import prepare
from lq.compat.deprecations import quiet_torchscript
from lq.conversion.graph import as_graph
from lq.export.artifact.signature import Signature
from lq.export.formats import torchscript
from lq.export.formats.torchscript import export_torchscript, int8_kernels, like_original, tensor_inputs
from lq.metrics import sqnr
from lq.ptq import calibrate


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(
        self, x: Tensor, other: dict[str, Tensor] | None = None, scale: float = 1.0, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        if other is not None:
            x = x + other["x"]
        return {"logits": self.layer(x) * scale}


def test_frozen_module_computes_the_same_on_other_batch_sizes(tmp_path: Path) -> None:
    net = Net().eval()
    frozen = export_torchscript(net, (torch.ones(1, 4),))
    with quiet_torchscript():
        torch.jit.save(frozen, str(tmp_path / "net.pt"))
        loaded = torch.jit.load(str(tmp_path / "net.pt"))
    x = torch.randn(7, 4)
    assert torch.equal(loaded(x)["logits"], net(x)["logits"])


def test_tensors_keep_their_names_and_defaults_are_left_out() -> None:
    net, x = Net().eval(), torch.randn(3, 4)
    args, kwargs = (x,), {"labels": torch.ones(3), "scale": 1.0}
    assert list(tensor_inputs(net, args, kwargs)[1]) == ["x", "labels"]
    frozen = export_torchscript(net, args, kwargs)
    assert torch.equal(frozen(x=x, labels=torch.ones(3))["logits"], net(x)["logits"])
    assert tensor_inputs(net, (x,)) == ((x,), {})


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_structures_come_as_tensors_and_constants_are_fixed(scale: float) -> None:
    net, x = Net().eval(), torch.randn(3, 4)
    args: tuple[Any, ...] = (x,)
    kwargs: dict[str, Any] = {"scale": scale, "other": {"x": x + 1}, "labels": None}
    frozen = export_torchscript(net, args, kwargs)
    assert torch.equal(frozen(x, x + 1)["logits"], net(x, {"x": x + 1}, scale)["logits"])
    adapted = like_original(frozen, net, args, kwargs)
    assert torch.equal(adapted(*args, **kwargs)["logits"], net(x, {"x": x + 1}, scale)["logits"])


def test_a_call_by_tensors_alone_needs_no_adapter() -> None:
    net, x = Net().eval(), torch.randn(3, 4)
    frozen = export_torchscript(net, (x,))
    assert like_original(frozen, net, (x,), {}) is frozen


def test_what_is_written_is_loaded_with_the_layers_named(tmp_path: Path) -> None:
    x = torch.randn(8, 4)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    prepared = prepare(net)
    calibrate(prepared, [x])
    info = torchscript.export(prepared, ((x,), {}), tmp_path)
    assert info["int8_layers"] == {"Linear": 2}
    assert info["float_layers"] == []
    with torch.no_grad():
        expected = prepared(x)
        got = torchscript.load(tmp_path, Signature.of(prepared, ((x,), {}), expected), info)(input=x)
    assert sqnr(expected, got) > 40


@pytest.mark.parametrize("form", ["mixed dict", "dict", "tuple", "list of tuples"])
def test_outputs_of_any_structure_come_back(form: str, tmp_path: Path) -> None:
    class Forms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            y = self.layer(x)
            forms: dict[str, Any] = {
                "mixed dict": {"logits": y, "hidden": [x, {"y": y}], "loss": None, "scale": 2},
                "dict": {"logits": y, "x": x},
                "tuple": (x, (y, x)),
                "list of tuples": [(x, None), (y, 1.5)],
            }
            return forms[form]

    x = torch.randn(8, 4)
    prepared = prepare(Forms())
    calibrate(prepared, [x])
    info = torchscript.export(prepared, ((x,), {}), tmp_path)
    with torch.no_grad():
        expected = prepared(x[:3])
        got = torchscript.load(tmp_path, Signature.of(prepared, ((x,), {}), expected), info)(x[:3])
    tree = torch.utils._pytree
    assert tree.tree_structure(got) == tree.tree_structure(expected)
    torch.testing.assert_close(tree.tree_leaves(got), tree.tree_leaves(expected), rtol=1e-2, atol=1e-2)  # one step


@pytest.mark.parametrize(("asked", "warn_only"), [(True, False), (True, True), (False, False)])
def test_int8_kernels_leaves_the_setting_as_it_was(asked: bool, warn_only: bool) -> None:
    torch.use_deterministic_algorithms(asked, warn_only=warn_only)
    try:
        with int8_kernels():
            torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8).clone()
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled() == asked
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
    finally:
        torch.use_deterministic_algorithms(False)


class Turned(nn.Module):
    """A spatial transformer: a layer says how the output of another one is turned."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.angles, self.head = nn.Conv2d(3, 4, 3), nn.Linear(3, 6), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, angles = self.layer(x), self.angles(x.mean((2, 3)))
        grid = F.affine_grid(angles.unflatten(1, (2, 3)), x.shape, align_corners=False)
        return self.head(F.grid_sample(x, grid, align_corners=False))


def test_sizes_that_operations_are_given_are_those_of_the_call(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    prepared = prepare(Turned(), example_args=(x,))
    calibrate(prepared, [x])
    graph = as_graph(prepared.eval())
    info = torchscript.export(graph, ((x,), {}), tmp_path)
    model = torchscript.load(tmp_path, Signature.of(graph, ((x,), {}), graph(x)), info, 1)
    for count in (1, 4, 7):
        more = torch.randn(count, 3, 8, 8)
        assert sqnr(prepared(more), model(more)) > 40  # a step at a tie
