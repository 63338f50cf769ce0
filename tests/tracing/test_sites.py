"""A plan of sites is plain data, from which another process instruments another module."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch import nn

from lq.backends.prepare import plan_of, prepare, prepare_again, qconfig_of
from lq.config.qconfig import LayerQConfig, QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.tracing.plan import Plan
from lq.tracing.sites import CallAt, Sites, TensorAt, in_place_joins
from tests.instrument.nets import Net, assert_same, images, ready, step

QCONFIG = QConfig(overrides={"stem": LayerQConfig(WeightSpec(-7, 7), ActivationSpec(0, 15))})


def through_json(plan: Any) -> Any:
    return json.loads(json.dumps(plan.to_dict()))


def test_it_survives_json_to_the_last_field() -> None:
    plan = plan_of(prepare(Net(), QCONFIG, example_args=(images(),)))
    assert plan.sites is not None
    assert Plan.from_dict(through_json(plan)) == plan


def test_another_module_is_instrumented_alike_without_inputs() -> None:
    net = prepare(Net(), QCONFIG, example_args=(images(),))
    ready(net, images())
    other = prepare_again(Net(), qconfig_of(net), through_json(plan_of(net)))
    other.load_state_dict(net.state_dict())
    assert plan_of(other) == plan_of(net)
    assert_same(step(net, images(1)), step(other.train(), images(1)))


def test_plans_of_older_checkpoints_have_no_numbers_of_calls() -> None:
    net = prepare(Net(), QCONFIG, example_args=(images(),))
    ready(net, images())
    plain = through_json(plan_of(net))
    assert plain["sites"].pop("counts")
    other = prepare_again(Net(), qconfig_of(net), plain)
    other.load_state_dict(net.state_dict())
    assert_same(step(net, images(1)), step(other.train(), images(1)))


def test_a_module_that_lacks_a_part_is_refused() -> None:
    net = prepare(Net(), example_args=(images(),))
    other = Net()
    other.blocks = other.blocks[:1]
    with pytest.raises(ValueError, match=r"Net has no module 'blocks\.1.*', which was quantized"):
        prepare_again(other, qconfig_of(net), through_json(plan_of(net)))
    with pytest.raises(ValueError, match="Sequential has no module"):
        prepare_again(nn.Sequential(nn.Linear(2, 2)), qconfig_of(net), through_json(plan_of(net)))


def test_joins_in_place_copy_what_somebody_else_may_read() -> None:
    call, other = CallAt("", "add", 0), CallAt("", "linear", 0)
    tensors = (TensorAt(0, call, owned=True), TensorAt(1, other, owned=True), TensorAt(2, other, (0,)))
    sites = Sites(("",), ("a", "b", "c"), (ActivationSpec(),) * 3, ("none",) * 3, (), tensors, (call,))
    changed = in_place_joins(sites)
    assert changed.fresh == ()
    assert [(t.owned, t.cloned) for t in changed.tensors] == [(False, True), (True, True), (False, False)]
