import copy

import pytest
import torch
import torchmetrics
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from lq.analysis import auto_exclude
from lq.analysis.auto_exclude import AutoExclude, find_exclusions
from lq.analysis.exclusions import Candidate
from lq.analysis.sensitivity import SensitivityOptions, SensitivityRow
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


class Known:
    """What is lost with some layers in float; another trial than those is a KeyError."""

    def __init__(self, losses):
        self.losses = losses

    def drop(self, in_float):
        return self.losses["".join(in_float)]


A, B, C = Candidate("a", 0.5, 0.2), Candidate("b", 0.3, 0.1), Candidate("c", 0.2, 0.05)


def outcome(losses, **limits):
    """Layer and reason of each candidate, those in float, and the loss that is left."""
    limits = AutoExclude(**{"max_layers": 3, "max_slowdown": 1.0, "max_drop": 0.1, **limits})
    found, left = auto_exclude._exclude([A, B, C], limits, Known(losses), 0.5)
    return {c.layer: c.reason for c in found}, "".join(c.layer for c in found if c.excluded), left


def test_the_search_ends_where_the_loss_is_allowed():
    reasons, excluded, left = outcome({"a": 0.1})
    assert (list(reasons), excluded, left) == (["a"], "a", 0.1)
    assert outcome({"a": 0.11}, max_layers=1)[1:] == ("a", 0.11)


def test_a_layer_that_takes_too_long_is_passed_over_for_a_shorter_one():
    reasons, excluded, left = outcome({"a": 0.4, "ac": 0.3, "c": 0.4}, max_slowdown=0.25)
    assert reasons["b"] == "would exceed max_slowdown=0.25"
    assert (excluded, left) == ("ac", 0.3)


def test_what_makes_it_worse_stays_quantized_and_what_is_needed_does_not():
    reasons, excluded, left = outcome({"a": 0.4, "ab": 0.3, "abc": 0.35, "b": 0.45})
    assert (excluded, left) == ("ab", 0.3)
    assert reasons == {
        "a": "in float, it takes the loss from 0.5 to 0.4",
        "b": "in float, it takes the loss from 0.4 to 0.3",
        "c": "in float, it takes the loss from 0.3 to 0.35",
    }


def test_each_but_the_last_layer_is_tried_without():
    reasons, excluded, left = outcome({"a": 0.4, "ab": 0.3, "abc": 0.0, "bc": 0.2, "ac": 0.1})
    assert (excluded, left) == ("ac", 0.1)
    assert [layer for layer, reason in reasons.items() if reason.endswith("not needed beside the others")] == ["b"]


def test_a_loss_that_is_just_allowed_excludes_nothing(monkeypatch):
    prepared, batches = planted()
    monkeypatch.setattr(auto_exclude._Trials, "drop", lambda self, in_float: 0.25)
    found = find_exclusions(prepared, batches, limits=AutoExclude(max_drop=0.25))
    assert found.verdict.startswith("nothing to exclude: ")


def test_layers_with_less_than_a_hundredth_of_the_noise_are_not_tried(monkeypatch):
    prepared, batches = planted()
    shares = {"0": 0.001, "3": 0.008, BAD: 0.978, "8": 0.013}
    rows = [
        SensitivityRow(
            layer=layer, direction="one", metric="sqnr_db", value=0.0, float_value=None, quantized_value=0.0,
            loss=share, share=share,
        )
        for layer, share in shares.items()
    ]  # fmt: skip
    monkeypatch.setattr(auto_exclude, "sensitivity", lambda *_, **__: rows)
    monkeypatch.setattr(auto_exclude._Trials, "drop", lambda self, in_float: 0.5)
    found = find_exclusions(prepared, batches, limits=AutoExclude(max_layers=4, **GENEROUS))
    assert [candidate.layer for candidate in found.candidates] == [BAD, "8"]


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
        ({"max_layers": 0}, "max_layers=0 must be at least 1; write e.g. max_layers=2"),
        ({"batches": 0}, "batches=0 must be at least 1"),
        ({"max_layers": 1.5}, r"max_layers=1.5 .* is not a whole number"),
        ({"max_drop": -0.1}, "max_drop=-0.1 must be 0 or more"),
        ({"max_slowdown": float("nan")}, "max_slowdown=nan is not a number"),
    ],
)
def test_impossible_limits_are_refused(limits, message):
    with pytest.raises((TypeError, ValueError), match=message):
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
