from __future__ import annotations

import copy
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lq.backends.prepare import plan_of, prepare
from lq.checkpoints.checkpoint import Checkpoint, check_state
from lq.checkpoints.entry import CheckpointEntry, quoted
from lq.config.qconfig import LayerQConfig, QConfig
from lq.config.schedule import Began
from lq.config.specs import WeightSpec
from lq.fields import Field
from tests.tiny import make_net

QCONFIG = QConfig(exclude=("0",))


def test_entry_of_another_target_is_refused() -> None:
    entry = CheckpointEntry("model", QConfig())
    with pytest.raises(ValueError, match=r"quantizes 'model', but this run the LightningModule itself.*target='model'"):
        entry.require_same_plan("", QConfig())


def test_it_prepares_as_it_was_then() -> None:
    entry = CheckpointEntry("model", QCONFIG, plan=plan_of(prepare(make_net(), QCONFIG)).to_dict())
    again = CheckpointEntry.from_dict(entry.to_dict())
    prepared = again.prepare(make_net(), "model", QCONFIG)
    assert plan_of(prepared).layers == plan_of(prepare(make_net(), QCONFIG)).layers
    with pytest.raises(ValueError, match=r"another qconfig: exclude=\('0',\) \(here \(\)\)"):
        again.prepare(make_net(), "model", QConfig())


def test_a_quantizer_that_a_file_names_is_not_imported() -> None:
    qconfig = QConfig(backend="pt2e", quantizer="this.main")
    plan = plan_of(prepare(make_net())).to_dict()
    for known in (plan, {}):
        entry = CheckpointEntry.from_dict(CheckpointEntry("", qconfig, plan=known).to_dict())
        with nullcontext() if known else pytest.raises(ValueError, match=r"lq\.plan is not what QATCallback writes"):
            entry.prepare(make_net(), "", qconfig)
    assert "this" not in sys.modules


def test_where_qat_began_is_plain_data_that_older_checkpoints_lack() -> None:
    entry = CheckpointEntry("", QConfig(), began=Began(0.75, 3.0))
    plain = entry.to_dict()
    assert plain["began"] == {"epochs": 0.75, "steps": 3.0}
    assert CheckpointEntry.from_dict(plain) == entry
    assert CheckpointEntry.from_dict(CheckpointEntry("", QConfig()).to_dict()).began is None
    del plain["began"]
    assert CheckpointEntry.from_dict(plain).began is None


@pytest.mark.parametrize("start", [2, 0.5, "30%", None])
def test_so_is_the_start(start: Any) -> None:
    plain = CheckpointEntry("", QConfig(), start=start).to_dict()
    assert CheckpointEntry.from_dict(plain).start == start
    del plain["start"]
    assert CheckpointEntry.from_dict(plain).start is None


def test_targets_are_named() -> None:
    assert (quoted("model"), quoted("")) == ("'model'", "the LightningModule itself")


def plain() -> dict[str, Any]:
    entry = CheckpointEntry(
        "model",
        QConfig(overrides={"5": LayerQConfig(WeightSpec(-7, 7))}),
        started=True,
        fp32={"accuracy": 0.5, "loss": float("nan")},
        history=[{"epoch": 0, "qat/phase": 1.0}],
    )
    return entry.to_dict()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"target": 5}, r"a\.ckpt: lq\.target is 5"),
        ({"format_version": "1"}, r"format_version is '1'"),
        ({"format_version": True}, r"format_version is True"),
        ({"started": 1}, r"started is 1"),
        ({"fp32": {"a": "b"}}, r"fp32\.a is 'b'"),
        ({"history": [{"a": []}]}, r"history\[0\]\.a is a list"),
        ({"began": {"epochs": "1", "steps": 3}}, r"began\.epochs is '1'"),
        ({"began": {"epochs": 1.0}}, r"began lacks 'steps'"),
        ({"start": "noon"}, r"start is 'noon'"),
        ({"start": [1]}, r"start is a list"),
        ({"plan": 3}, r"plan is 3"),
        ({"plan": None}, r"plan is None"),
        ({"qconfig": 3}, r"qconfig is 3"),
        ({"qconfig": {}}, r"qconfig lacks 'weight'"),
    ],
)
def test_a_tampered_entry_is_named(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        CheckpointEntry.from_dict({**plain(), **change}, "a.ckpt: lq")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"preset": "abacus"}, "Unknown qconfig preset"),
        ({"weight": {"quant_min": "-7", "quant_max": 7}}, r"quant_min is '-7'"),
        ({"weight": {"quant_min": 7, "quant_max": -7}}, "must be below"),
        ({"weight": {"bits": 4}}, "has 'bits', which no grid has"),
        ({"activation": {"percentile": float("nan")}}, r"percentile is nan"),
        ({"exclude": [1]}, r"exclude\[0\] is 1"),
        ({"overrides": {"a": {}}}, r"overrides\.a lacks 'weight'"),
        ({"surprise": 1}, "is no qconfig: .*surprise"),
    ],
)
def test_a_tampered_qconfig_is_named(change: dict[str, Any], complaint: str) -> None:
    entry = plain()
    with pytest.raises(ValueError, match=complaint):
        CheckpointEntry.from_dict({**entry, "qconfig": {**entry["qconfig"], **change}}, "a.ckpt: lq")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in entries for place in places(item, (*path, key)))]


@settings(max_examples=1000, deadline=None)
@given(data=st.data())
def test_no_change_of_an_entry_raises_anything_else(data: st.DataObject) -> None:
    entry = copy.deepcopy(plain())
    path, new = data.draw(st.sampled_from(places(entry)[1:])), data.draw(ANYTHING)
    place: Any = entry
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    try:
        read = CheckpointEntry.from_dict(entry, "a.ckpt: lq")
    except ValueError:
        return
    # What was accepted is what is written again: nothing was bent to fit.
    assert CheckpointEntry.from_dict(read.to_dict()).qconfig == read.qconfig


@settings(max_examples=500, deadline=None)
@given(
    low=st.lists(st.floats(width=32), max_size=4),
    high=st.lists(st.floats(width=32), max_size=4),
    kind=st.sampled_from([torch.float32, torch.float64, torch.int64, None]),
)
def test_ranges_are_finite_and_in_order_or_refused(low: list[float], high: list[float], kind: Any) -> None:
    def held(values: list[float]) -> Any:
        if kind is torch.int64:
            return torch.zeros(len(values), dtype=kind)
        return values if kind is None else torch.tensor(values, dtype=kind)

    state = {"model.qat_state.min_val": held(low), "model.qat_state.max_val": held(high)}
    never = (math.inf, -math.inf)
    ends = list(zip(low, high, strict=False))
    sound = len(low) == len(high) and kind in (torch.float32, torch.float64)
    sound = sound and all(end == never or (math.isfinite(sum(end)) and end[0] <= end[1]) for end in ends)
    try:
        check_state(Field(state, "a.ckpt: state_dict"))
    except ValueError as error:
        complaint = str(error)
    else:
        complaint = ""
    if sound:
        assert complaint == ""
    else:
        assert complaint.startswith("a.ckpt: state_dict.model.qat_state.")


@pytest.mark.parametrize("content", [b"", b"half a mod", b"PK\x03\x04" + b"\0" * 64, b"\x80\x04N."])
def test_bytes_that_are_no_checkpoint_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.ckpt"):
        Checkpoint.read(tmp_path / "a.ckpt")
