import pytest
import torch

from lq.analysis.costs import CostRow, layer_costs
from lq.analysis.exclusions import propose_exclusions
from lq.analysis.sensitivity import SensitivityRow, sensitivity
from lq.config.qconfig import QConfig
from lq.metrics import sqnr
from lq.ptq import prepare_static
from tests.analysis.planted import BAD, PER_TENSOR, make_batches, make_planted


def row(layer, loss, whole=0.1, metric="accuracy", **others):
    share = loss / whole if whole > 0 else None
    return SensitivityRow(
        layer=layer, direction="all_but_one", metric=metric, value=0.0, float_value=0.9, quantized_value=0.9 - whole,
        loss=loss, share=share,
    ) | others  # fmt: skip


def cost(layer, extra):
    return CostRow(layer=layer, macs=0, int8_ms=1.0, float_ms=1.0 + extra)


@pytest.mark.parametrize("direction", ["one", "all_but_one"])
def test_the_planted_layer_is_proposed_and_leaving_it_out_mends_the_model(direction):
    batches = make_batches()
    prepared = prepare_static(make_planted(), batches, PER_TENSOR)
    rows = sensitivity(prepared, batches, direction=direction)
    proposal = propose_exclusions(rows, layer_costs(prepared, batches[0], min_time=0.005), max_slowdown=10)
    assert proposal.layers == (BAD,)
    mended = prepare_static(make_planted(), batches, proposal.apply(PER_TENSOR))
    x = batches[0][0]
    with torch.no_grad():
        exact = make_planted()(x)
        assert sqnr(exact, prepared(x)) < 15
        assert sqnr(exact, mended(x)) > 30


def test_a_good_model_needs_no_exclusions():
    batches = make_batches(1)
    prepared = prepare_static(make_planted(()), batches, PER_TENSOR)
    proposal = propose_exclusions(sensitivity(prepared, batches), enough=25)
    assert proposal.patterns == ()
    assert "nothing to exclude: SQNR of" in str(proposal)


def test_most_harm_per_time_comes_first_until_it_is_enough():
    rows = [row("dear", 0.05), row("cheap", 0.04), row("small", 0.008), row("negligible", 0.002)]
    costs = [cost("dear", 0.4), cost("cheap", 0.04), cost("small", 0.04), cost("negligible", 0.0)]
    proposal = propose_exclusions(rows, costs, enough=0.06)
    assert [(c.layer, c.excluded) for c in proposal.candidates] == [("cheap", True), ("small", False), ("dear", False)]
    assert proposal.slowdown == pytest.approx(0.01)
    assert "good enough without" in str(proposal)
    assert "loss of 0.0600 in accuracy instead of 0.1000, for +1.0% time" in proposal.verdict


def test_the_time_is_limited():
    rows = [row("a", 0.05), row("b", 0.04)]
    proposal = propose_exclusions(rows, [cost("a", 0.3), cost("b", 0.3)], max_slowdown=0.2)
    assert proposal.layers == ("a",)
    assert "would exceed max_slowdown=0.2" in str(proposal)


def test_a_layer_that_is_faster_in_float_costs_nothing():
    proposal = propose_exclusions([row("a", 0.05)], [cost("a", -0.5)], max_slowdown=0.0)
    assert proposal.layers == ("a",)


@pytest.mark.parametrize("whole", [0.001, 0.0, -0.02])
def test_nothing_is_proposed_where_quantization_does_no_harm(whole):
    assert propose_exclusions([row("a", 0.05, whole), row("b", 0.0, whole)]).patterns == ()


def test_a_metric_that_falls_is_judged_by_the_size_of_its_loss():
    worse = row("a", 0.08, metric="mean_squared_error", float_value=0.1, quantized_value=0.2)
    assert propose_exclusions([worse]).layers == ("a",)


def test_spread_harm_is_said():
    rows = [row(str(i), 0.1 / 50) for i in range(50)]
    assert "loss is spread over all layers (loss of 0.1000" in propose_exclusions(rows).verdict


def test_patterns_are_literal_and_join_those_that_are_there():
    proposal = propose_exclusions([row("blocks[0]", 0.05)])
    qconfig = proposal.apply(QConfig(exclude=("stem",)))
    assert qconfig.exclude == ("stem", "blocks[[]0]")
    assert proposal.apply(qconfig).exclude == qconfig.exclude


@pytest.mark.parametrize(
    ("rows", "costs", "message"),
    [
        ([], None, "rows is empty"),
        ([row("a", 0.1), row("b", 0.1, metric="sqnr_db")], None, "several measurements"),
        ([row("a", 0.1)], [cost("b", 0.1)], r"costs lack \['a'\]"),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(rows, costs, message):
    with pytest.raises(ValueError, match=message):
        propose_exclusions(rows, costs)
