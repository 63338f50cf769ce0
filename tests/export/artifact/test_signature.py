from __future__ import annotations

import json
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lq.export.artifact.signature import Signature


class Net(nn.Module):
    def forward(self, image: Tensor, pair: Any = None, scale: float = 2.0, *, mask: Tensor | None = None) -> Any:
        return image


X = torch.arange(8.0).reshape(4, 2)


def signature(*args: Any, output: Any = X, **kwargs: Any) -> Signature:
    return Signature.of(Net(), (args, kwargs), output)


def test_tensors_come_in_the_order_of_the_parameters_however_they_are_given() -> None:
    a, b, c, d = (X + i for i in range(4))
    taken = signature(a, {"left": b, "right": [c]}, mask=d)
    assert [spec.name for spec in taken.inputs] == ["image", "pair_0", "pair_1", "mask"]
    pair = {"left": b, "right": [c]}
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((a, pair), {"mask": d}),
        ((a,), {"mask": d, "pair": pair}),
        ((), {"mask": d, "pair": pair, "image": a}),
        ((a, pair, 2.0), {"mask": d}),
    ]
    for args, kwargs in calls:
        assert all(x is y for x, y in zip(taken.tensors(args, kwargs), (a, b, c, d), strict=True))


def test_dimensions_that_differ_are_no_batch() -> None:
    taken = signature(X, torch.zeros(9, dtype=torch.int64), mask=torch.zeros(1, 3))
    assert str(taken) == "(image: float32(any, 2), pair: int64(any), mask: float32(1, 3))"
    assert taken.misfit((X[:2], torch.zeros(3, dtype=torch.int64)), {"mask": torch.zeros(1, 3)}) is None
    assert taken.batch is None
    assert Signature.from_dict(json.loads(json.dumps(taken.to_dict()))) == taken


def test_what_was_written_before_sizes_were_named_has_a_batch() -> None:
    plain = signature(X).to_dict()
    for entry in plain["inputs"]:
        entry["shape"] = [None, *entry["shape"][1:]]
        del entry["sizes"]
    read = Signature.from_dict(plain)
    assert str(read) == str(signature(X))
    assert read.inputs[0].fits(torch.ones(9, 2))


def test_arguments_without_name_are_counted() -> None:
    class Stack(nn.Module):
        def forward(self, *images: Tensor) -> Tensor:
            return images[0]

    taken = Signature.of(Stack(), ((X, X + 1), {}), X)
    assert len(taken.inputs) == 2
    assert torch.equal(taken.tensors((X, X + 1), {})[1], X + 1)


@pytest.mark.parametrize(("fixed", "kwargs"), [(2.0, {}), (3.0, {"scale": 3.0})])
def test_what_is_no_tensor_is_fixed_when_exported(fixed: float, kwargs: dict[str, float]) -> None:
    taken = signature(X, **kwargs)
    taken.tensors((X,), {"scale": fixed})
    with pytest.raises(ValueError, match=rf"was exported with scale={fixed}, which is fixed in it, .* with scale=9\.0"):
        taken.tensors((X,), {"scale": 9.0})


def test_the_number_of_tensors_is_checked() -> None:
    with pytest.raises(ValueError, match=r"takes \(image: float32\(batch, 2\)\), but was called with mask="):
        signature(X).tensors((X,), {"mask": X})
    with pytest.raises(ValueError, match=r"but was called without image\."):
        signature(X).tensors((), {})


def test_misfit_names_shape_and_type() -> None:
    taken = signature(X, mask=torch.ones(4, dtype=torch.int64))
    assert taken.misfit((X[:1],), {"mask": torch.ones(1, dtype=torch.int64)}) is None
    found = taken.misfit((torch.ones(3, 5),), {"mask": torch.ones(3)})
    assert found is not None
    assert found.startswith("the model was exported for (image: float32(batch, 2), mask: int64(batch)), but")
    assert "image is float32(3, 5)" in found
    assert "mask is float32(3,)" in found


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    "output",
    [
        X,
        (X, X + 1),
        [X],
        {"logits": X, "loss": None},
        {"a": [X, {"b": X + 1}], "n": 3, "s": "text", "t": True},
        (X, None),
        None,
    ],
)
def test_outputs_come_back_in_their_structure(output: Any) -> None:
    taken = Signature.from_dict(json.loads(json.dumps(signature(X, output=output).to_dict())))
    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    restored = taken.restore(tensors)
    spec = torch.utils._pytree.tree_structure
    assert spec(restored) == spec(output)
    for a, b in zip(*(torch.utils._pytree.tree_leaves(o) for o in (restored, output)), strict=True):
        assert a is b or a == b


def test_a_class_that_cannot_be_written_down_comes_back_as_a_tuple() -> None:
    restored = signature(X, output=Pair(X, X + 1)).restore([X, X + 1])
    assert isinstance(restored, tuple)
    assert torch.equal(restored[1], X + 1)


def test_signature_survives_json() -> None:
    taken = signature(X, {"left": X}, mask=X, output={"a": X})
    again = Signature.from_dict(json.loads(json.dumps(taken.to_dict())))
    assert again == taken


@pytest.mark.parametrize("size", [(4, 4), [4, 4], torch.Size([4, 4]), {"height": [4, None]}, torch.float16, "same"])
def test_sizes_and_types_are_fixed_like_numbers(size: Any) -> None:
    class Resized(nn.Module):
        def forward(self, x: Tensor, size: Any, mode: str = "nearest") -> Tensor:
            return x

    made = Signature.of(Resized(), ((X, size), {}), X)
    read = Signature.from_dict(json.loads(json.dumps(made.to_dict())))
    assert len(read.tensors((X, size), {})) == 1
    with pytest.raises(
        ValueError, match=r"was exported with size=.*, which is fixed in it, but was called with size=7"
    ):
        read.tensors((X, 7), {})


def test_what_a_file_cannot_hold_is_refused_when_it_is_made() -> None:
    class Configured(nn.Module):
        def forward(self, x: Tensor, config: Any = object) -> Tensor:
            return x

    with pytest.raises(ValueError, match=r"called with config=.*cannot hold a Linear.*attribute of the module"):
        Signature.of(Configured(), ((X, nn.Linear(1, 1)), {}), X)
    assert Signature.of(Configured(), ((X,), {}), X).constants == {}
