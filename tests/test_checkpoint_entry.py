from __future__ import annotations

import pytest

from lq.backends.prepare import plan_of, prepare
from lq.checkpoint_entry import CheckpointEntry, quoted
from lq.qconfig import QConfig
from tests.tiny import make_net

QCONFIG = QConfig(exclude=("0",))


def test_entry_of_another_target_is_refused() -> None:
    entry = CheckpointEntry("model", QConfig())
    with pytest.raises(ValueError, match=r"quantizes 'model', but this run the LightningModule itself.*target='model'"):
        entry.require_same_plan("", QConfig())


def test_it_prepares_as_it_was_then() -> None:
    entry = CheckpointEntry("model", QCONFIG, passed=("input",))
    again = CheckpointEntry.from_dict(entry.to_dict())
    prepared = again.prepare(make_net(), "model", QCONFIG)
    assert plan_of(prepared).layers == plan_of(prepare(make_net(), QCONFIG)).layers
    assert plan_of(prepared).passed == ("input",)
    with pytest.raises(ValueError, match=r"another qconfig: exclude=\('0',\) \(here \(\)\)"):
        again.prepare(make_net(), "model", QConfig())


def test_targets_are_named() -> None:
    assert (quoted("model"), quoted("")) == ("'model'", "the LightningModule itself")
