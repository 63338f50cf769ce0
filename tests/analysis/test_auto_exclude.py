import copy

import pytest
import torch
import torchmetrics
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from lq.analysis import auto_exclude
from lq.analysis.auto_exclude import AutoExclude, find_exclusions
from lq.analysis.sensitivity import SensitivityOptions
from lq.backends.prepare import prepare
from lq.ptq import prepare_static
from tests.analysis.planted import BAD, PER_TENSOR, make_batches, make_planted

GENEROUS = {"max_slowdown": 100.0}  # the times of so small layers say nothing


def planted(bad=(BAD,), batches=3):
    data = make_batches(batches)
    return prepare_static(make_planted(bad), data, PER_TENSOR), data


def test_the_planted_layer_is_found_and_the_metric_says_what_it_brings():
    prepared, batches = planted()
    found = find_exclusions(prepared, batches, limits=AutoExclude(**GENEROUS))
    assert found.layers == (BAD,)
    (candidate,) = found.candidates
    assert candidate.share > 0.9
    assert candidate.reason.startswith("in float, it takes the loss from 0.")
    assert found.verdict.startswith("quantization takes accuracy from 1 to 0.")
    assert "; with 1 layer in float it is 0.9" in found.verdict or "; with 1 layer in float it is 1" in found.verdict
    assert found.apply(PER_TENSOR).exclude == (BAD,)


def test_several_planted_layers_are_found_but_no_more_than_allowed():
    prepared, batches = planted(("3", BAD, "8"))
    three = find_exclusions(prepared, batches, limits=AutoExclude(max_layers=3, **GENEROUS))
    assert set(three.layers) == {"3", BAD, "8"}
    two = find_exclusions(prepared, batches, limits=AutoExclude(max_layers=2, **GENEROUS))
    assert len(two.layers) <= 2
    assert set(two.layers) < {"3", BAD, "8"}


def test_what_loses_nothing_keeps_all_its_layers_without_being_looked_at(monkeypatch):
    monkeypatch.setattr(auto_exclude, "sensitivity", None)
    prepared, batches = planted(())
    found = find_exclusions(prepared, batches, limits=AutoExclude(max_drop=0.1))
    assert found.candidates == ()
    assert found.verdict.startswith("nothing to exclude: quantization takes accuracy from 0.")


def test_what_would_take_too_long_stays_quantized():
    prepared, batches = planted()
    found = find_exclusions(prepared, batches, limits=AutoExclude(max_slowdown=0.0))
    assert found.layers == ()
    assert "would exceed max_slowdown=0" in str(found)
    assert "nothing worth excluding" in found.verdict


def test_what_brings_nothing_stays_quantized(monkeypatch):
    prepared, batches = planted()
    monkeypatch.setattr(auto_exclude._Trials, "drop", lambda self, in_float: 0.5)
    found = find_exclusions(prepared, batches, limits=AutoExclude(**GENEROUS))
    assert found.candidates
    assert found.layers == ()
    assert "takes the loss from 0.5 to 0.5" in str(found)


def test_the_model_is_left_as_it_was():
    prepared, batches = planted()
    x, before = batches[0][0], copy.deepcopy(prepared.state_dict())
    with torch.no_grad():
        y = prepared(x)
        find_exclusions(prepared, batches, limits=AutoExclude(**GENEROUS))
        assert torch.equal(prepared(x), y)
    assert prepared.qat_state.fake_quant
    assert all(torch.equal(v, before[k]) for k, v in prepared.state_dict().items() if isinstance(v, torch.Tensor))


def test_what_came_to_help_first_but_is_not_needed_stays_quantized(monkeypatch):
    prepared, batches = planted(("3", BAD, "8"))
    losses = {(): 0.5, ("8",): 0.49, ("8", "3"): 0.0, ("3",): 0.004}
    monkeypatch.setattr(auto_exclude._Trials, "drop", lambda self, in_float: losses[tuple(in_float)])
    found = find_exclusions(prepared, batches, limits=AutoExclude(**GENEROUS))
    assert found.layers == ("3",)
    assert "takes the loss from 0.5 to 0.49; not needed beside the others" in str(found)
    losses[("3",)] = 0.006
    assert find_exclusions(prepared, batches, limits=AutoExclude(**GENEROUS)).layers == ("8", "3")


def test_metrics_that_fall_and_collections_are_judged_too():
    prepared, batches = planted()
    with torch.no_grad():
        scores = [(x, make_planted()(x)) for x, _ in batches]
    error = torchmetrics.MeanSquaredError()
    found = find_exclusions(prepared, scores, error, AutoExclude(max_layers=1, max_drop=0.0, **GENEROUS))
    assert found.layers == (BAD,)
    assert "takes mean_squared_error from 0 to " in found.verdict
    both = torchmetrics.MetricCollection(
        {"top1": MulticlassAccuracy(4, average="micro"), "mean": MulticlassAccuracy(4)}
    )
    assert find_exclusions(prepared, batches, both, AutoExclude(**GENEROUS)).layers == (BAD,)


def test_other_layouts_of_batches():
    prepared, batches = planted()
    options = SensitivityOptions(call=lambda m, b: m(b["image"]), target_fn=lambda b: b["class"])
    named = [{"image": x, "class": y} for x, y in batches]
    assert find_exclusions(prepared, named, None, AutoExclude(**GENEROUS), options).layers == (BAD,)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_layers": 0}, "max_layers=0 must be a whole number of at least 1"),
        ({"batches": 0}, "batches=0 must be a whole number of at least 1"),
        ({"max_layers": 1.5}, r"max_layers=1.5 must be a whole number"),
        ({"max_drop": -0.1}, "max_drop=-0.1 must be 0 or more"),
        ({"max_slowdown": float("nan")}, "max_slowdown=nan is not a number"),
    ],
)
def test_impossible_limits_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        AutoExclude(**limits)


class Undecided(torchmetrics.MeanMetric):
    higher_is_better = None


def test_bad_input_is_refused():
    prepared, batches = planted(batches=1)
    with pytest.raises(ValueError, match=r"find_exclusions\(\) got no batch"):
        find_exclusions(prepared, [])
    with pytest.raises(ValueError, match=r"find_exclusions\(\) needs ranges"):
        find_exclusions(prepare(nn.Sequential(nn.Linear(4, 2))), batches)
    with pytest.raises(ValueError, match="does not say whether higher is better"):
        find_exclusions(prepared, batches, Undecided())
    with pytest.raises(ValueError, match="no labels found"):
        find_exclusions(prepared, [batches[0][0]])
    with pytest.raises(ValueError, match="labels run from 0 to 9"):
        find_exclusions(prepared, [(batches[0][0], torch.full((32,), 9) * (torch.arange(32) > 0))])
    with pytest.raises(TypeError, match="give a single torchmetrics metric"):
        find_exclusions(prepared, batches, lambda a, b: 0)
