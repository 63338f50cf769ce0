import json

import pytest

from lq.analysis import SensitivityOptions, analyze_layers
from lq.ptq import prepare_static
from tests.analysis.planted import BAD, PER_TENSOR, make_batches, make_planted


def test_all_analyses_agree_on_the_planted_layer():
    batches = make_batches(2)
    prepared = prepare_static(make_planted(), batches, PER_TENSOR)
    found = analyze_layers(prepared, batches, "accuracy", options=SensitivityOptions(limit=2))
    assert max(found.sensitivity, key=lambda row: row["loss"])["layer"] == BAD
    worst = min((row for row in found.sqnr if row["kind"] == "weight"), key=lambda row: row["worst_channel_db"])
    assert worst["name"] == BAD
    layers = [row["layer"] for row in found.sensitivity]
    assert [row["layer"] for row in found.costs] == layers
    assert {row["name"] for row in found.ranges if row["kind"] == "weight"} == set(layers)
    plain = found.to_dict()
    assert json.loads(json.dumps(plain))["exclude"] == list(found.exclusions.patterns)


def test_no_batch_is_refused():
    prepared = prepare_static(make_planted(), make_batches(1), PER_TENSOR)
    with pytest.raises(ValueError, match=r"analyze_layers\(\) got no batch"):
        analyze_layers(prepared, [])
