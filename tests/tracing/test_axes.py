from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lq
from lq.conversion.graph import as_graph
from lq.tracing.axes import asked_axes, axes_of, checked_axes, named_tensors, open_axes, other_sizes

IMAGES = ((torch.zeros(8, 3, 4, 6),), {})


class Takes(nn.Module):
    def forward(self, x: Tensor, *, masks: dict[str, Tensor], scale: float = 1.0) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (["x"], TypeError, "must map names of inputs to dimensions: dynamic_axes={'x': "),
        ({2: [1]}, TypeError, "must map names of inputs"),
        ({"x": 2}, TypeError, "x=2 must be a list of dimensions"),
        ({"x": "23"}, TypeError, "must be a list of dimensions"),
        ({"x": ["height"]}, TypeError, "'height' of x is no dimension"),
        ({"x": [True]}, TypeError, "True of x is no dimension"),
        ({"x": {2: "a b"}}, ValueError, "'a b' for dimension 2 of x is no name"),
        ({"x": {2: None}}, ValueError, "None for dimension 2 of x is no name"),
        ({"x": {2: "batch"}}, ValueError, "'batch' for dimension 2 of x is a word of lq"),
        ({"x": {1: "any"}}, ValueError, "'any' for dimension 1 of x is a word of lq"),
    ],
)
def test_another_form_is_refused_with_the_right_one(given: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        checked_axes(given)


def test_nothing_is_nothing() -> None:
    assert checked_axes(None) == checked_axes({}) == checked_axes({"x": []}) == {}


def test_dimensions_are_counted_from_either_end_and_the_batch_needs_no_word() -> None:
    wanted = checked_axes({"input": [0, 2, -1]})
    assert axes_of(nn.Identity(), IMAGES, wanted) == {"input": {2: "input_2", 3: "input_3"}}
    assert axes_of(nn.Identity(), IMAGES, checked_axes({"input": {0: "batch", -2: "height"}})) == {
        "input": {2: "height"}
    }


def test_where_tensors_share_no_batch_the_first_dimension_is_one_like_others() -> None:
    call = ((torch.zeros(5, 4),), {"masks": {"a": torch.zeros(9, 2), "b": torch.zeros(9)}})
    assert list(named_tensors(Takes(), call)) == ["x", "masks_0", "masks_1"]
    assert axes_of(Takes(), call, checked_axes({"x": {0: "nodes"}, "masks_0": [1]})) == {
        "x": {0: "nodes"},
        "masks_0": {1: "masks_0_1"},
    }
    assert open_axes(Takes(), call) == [{0: "any"}, {0: "any"}, {0: "any"}]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"y": [1]}, r"dynamic_axes names 'y', but the inputs of Identity are input \(8, 3, 4, 6\)\."),
        ({"input": [4]}, r"names dimension 4 of input, whose shape is \(8, 3, 4, 6\)"),
        ({"input": [-5]}, "names dimension -5 of input"),
    ],
)
def test_what_does_not_fit_the_example_is_refused(wanted: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        axes_of(nn.Identity(), IMAGES, checked_axes(wanted))


def test_a_size_of_one_is_refused_as_it_may_be_broadcast() -> None:
    with pytest.raises(ValueError, match="dimension 1 of input, which has the size 1 in the example"):
        axes_of(nn.Identity(), ((torch.zeros(8, 1),), {}), checked_axes({"input": [1]}))


def test_other_sizes_change_all_tensors_alike() -> None:
    call = ((torch.rand(2, 6),), {"masks": {"a": torch.rand(2, 6, 6), "b": torch.rand(2, 3)}})
    axes = {"x": {1: "n"}, "masks_0": {1: "n", 2: "n"}}
    (large_args, large), (small_args, small) = other_sizes(Takes(), call, axes)
    assert [tuple(t.shape) for t in (large_args[0], large["masks"]["a"], large["masks"]["b"])] == [
        (2, 12),
        (2, 12, 12),
        (2, 3),
    ]
    assert [tuple(t.shape) for t in (small_args[0], small["masks"]["a"])] == [(2, 3), (2, 3, 3)]
    assert torch.equal(small_args[0], call[0][0][:, :3])


def test_a_graph_without_open_axes_cannot_get_any() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.rand(2, 3, 8, 8)
    prepared = lq.prepare(net, example_args=(x,))
    fixed = as_graph(prepared)
    assert asked_axes(fixed) == {}
    with pytest.raises(ValueError, match="a graph that was made without dynamic axes cannot get any"):
        as_graph(fixed, axes={"input": {2: "height"}})
    opened = as_graph(prepared, axes={"input": {2: "height"}})
    assert asked_axes(opened) == {"input": {2: "height"}}
    assert as_graph(opened, axes={"input": {2: "height"}}) is opened
    assert open_axes(opened, ((x,), {})) == [{0: "batch", 2: "height"}]
    assert open_axes(opened, ((x,), {}), asked=False) == [{0: "batch"}]


class TakesMore(nn.Module):
    def forward(self, x: Tensor, flag: bool = True, *rest: Tensor, last: Tensor, **more: Tensor) -> Tensor:
        return x


def test_further_arguments_have_names_of_their_own() -> None:
    one = torch.zeros(2, 3)
    call = ((one, False, one + 1, one + 2), {"last": one + 3, "extra": one + 4})
    found = {name: int(tensor[0, 0]) for name, tensor in named_tensors(TakesMore(), call).items()}
    assert found == {"x": 0, "rest_0": 1, "rest_1": 2, "last": 3, "extra": 4}


def test_images_in_a_list_have_one_size() -> None:
    with pytest.raises(ValueError, match="Identity takes a list of images, and its graph holds their size"):
        axes_of(nn.Identity(), (([torch.zeros(3, 8, 8)],), {}), {"input": {1: "height"}})
