from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lq.export.parity.fresh_process import WorkerError
from lq.export.parity.gate import Gate, Parity, check, measure, metric_complaint
from lq.export.parity.worker import Worker
from lq.tracing.structure import Inputs

SCORES = torch.randn(40, 5, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"batches": 0}, r"batches=0 must be at least 1"),
        ({"min_agreement": 99.8}, r"min_agreement=99\.8 must be from 0 to 1 \(0\.99 is 99 %\), or None"),
        ({"min_sqnr_db": math.inf}, r"min_sqnr_db=inf must be a number of dB, or None"),
        ({"on_failure": "stop"}, r"on_failure='stop' must be one of error, warn"),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gate(**argument)


def flipped(count: int) -> Tensor:
    """The scores, where so many samples have another largest one by a hair."""
    changed = SCORES.clone()
    for row in changed[:count]:
        best = row.argmax()
        row[(best + 1) % 5] = row[best] + 1e-4
    return changed


def measured(got: Tensor, **gate: Any) -> Parity:
    return measure(SCORES.split(16), got.split(16), Gate(**gate))


def test_what_agrees_passes_with_its_measures() -> None:
    parity = measured(SCORES + 1e-3)
    assert parity.passed
    assert (parity.samples, parity.agreement) == (40, 1.0)
    assert parity.max_abs_error == pytest.approx(1e-3, rel=1e-3)
    assert parity.sqnr_db == pytest.approx(60, abs=1)
    assert parity.fidelity.keys() == {"agreement", "sqnr_db", "max_abs_error"}
    assert measured(SCORES).sqnr_db == math.inf
    assert json.dumps(parity.to_dict())
    assert parity.to_dict()["passed"] is True


@pytest.mark.parametrize(("differing", "passes"), [(1, True), (2, False)])
def test_a_single_sample_may_always_differ(differing: int, passes: bool) -> None:
    parity = measured(flipped(differing), min_agreement=0.999, min_sqnr_db=None)
    assert parity.agreement == 1 - differing / 40
    assert parity.passed == passes
    assert passes or parity.complaint == "agreement 95.00% is below 99.90%"


def test_thresholds_can_be_set_and_left_out() -> None:
    noisy = SCORES + 0.1 * torch.randn(40, 5)
    assert measured(noisy).complaint.startswith("SQNR 2")
    assert measured(noisy, min_sqnr_db=10, min_agreement=None).passed
    assert measured(flipped(10), min_agreement=None, min_sqnr_db=None).passed
    assert measured(flipped(2), min_agreement=0.95, min_sqnr_db=None).passed


def test_not_a_number_never_passes() -> None:
    assert not measured(SCORES * math.nan).passed


def test_another_shape_is_a_complaint() -> None:
    parity = measured(SCORES[:, :4])
    assert parity.complaint == "its output has shape (16, 4) instead of (16, 5)"


def test_agreement_is_a_matter_of_classifiers() -> None:
    scalars = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    parity = measure(scalars, scalars, Gate())
    assert (parity.agreement, parity.samples) == (None, 3)
    assert "agreement" not in parity.fidelity


def test_outputs_without_elements_are_equal_and_count_for_nothing() -> None:
    nothing = torch.zeros(0, 5)
    empty = measure([nothing], [nothing], Gate())
    assert (empty.passed, empty.agreement) == (True, None)
    assert measure([nothing, SCORES], [nothing, flipped(2)], Gate()) == measure([SCORES], [flipped(2)], Gate())


def test_a_model_that_does_not_run_is_a_complaint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(worker: Worker, directory: Path, kind: str, calls: list[Inputs]) -> list[Tensor]:
        raise RuntimeError("torch: a fresh process could not run it: Killed")

    monkeypatch.setattr(Worker, "run", fail)
    parity = check(tmp_path, "torch", [], [], Gate(), Worker())
    assert parity.complaint == "torch: a fresh process could not run it: Killed"
    assert parity.samples == 0


@pytest.mark.parametrize(("ratio", "explained"), [(24.0, True), (20.1, True), (19.9, False), (math.nan, False)])
def test_rounding_explains_twice_its_noise(ratio: float, explained: bool) -> None:
    noise = Parity(200, 26.0, 1.0, agreement=0.99)
    assert Parity(200, ratio, 1.0, agreement=0.9).is_explained_by(noise) == explained


def test_metric_of_an_artifact_may_change_by_so_much() -> None:
    exact, got = {"accuracy": 0.9, "loss": 1.0}, {"accuracy": 0.905, "loss": 1.2}
    assert metric_complaint(exact, got, Gate()) == ""
    assert metric_complaint(exact, got, Gate(max_metric_change=0.25)) == ""
    assert metric_complaint(exact, got, Gate(max_metric_change=0.1)) == "loss is 1.2 instead of 1"
    assert (
        metric_complaint(exact, {"accuracy": float("nan")}, Gate(max_metric_change=0.1))
        == "accuracy is nan instead of 0.9"
    )
    with pytest.raises(ValueError, match=r"max_metric_change=-1 must be 0 or more"):
        Gate(max_metric_change=-1)


def test_the_farthest_of_several_outputs_counts() -> None:
    main, other, loss = torch.randn(8, 5), torch.randn(8, 3, 4), torch.tensor(1.0)
    same = measure([(main, other, loss)] * 2, [(main, other, loss)] * 2, Gate())
    assert same.passed
    assert (same.samples, same.sqnr_db, same.agreement) == (16, math.inf, 1.0)
    far = measure([(main, other, loss)] * 2, [(main, 1.1 * other, loss)] * 2, Gate())
    assert far.sqnr_db == pytest.approx(20.0, abs=1e-3)
    assert far.agreement == 1.0
    assert far.complaint == "SQNR 20.0 dB is below 25.0 dB in the output of shape (8, 3, 4)"
    assert measure([(main, other)], [(main, 1.01 * other)], Gate()).passed
    assert (
        "its output has shape (8, 3) instead of (8, 3, 4)"
        in measure([(main, other)], [(main, other[:, :, 0])], Gate()).complaint
    )
    assert "2 tensors" in measure([(main, other)], [main], Gate()).complaint


def test_masks_of_infinity_and_empty_outputs_do_not_count() -> None:
    mask = torch.full((4, 4), -math.inf).triu(1)
    for other in (mask, torch.zeros(0, 4)):
        assert measure([(torch.ones(8, 5), other)], [(torch.ones(8, 5), other)], Gate()).sqnr_db == math.inf


def test_a_model_that_fails_where_no_process_can_be_started_is_a_complaint(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoProcess(Worker):
        def run(self, *args: Any) -> Any:
            raise WorkerError("there is no memory")

    def fails(directory: Path, kind: str) -> Any:
        def model(*args: Any) -> Any:
            raise NotImplementedError("no such kernel")

        return model

    monkeypatch.setattr("lq.export.parity.gate.load", fails)
    parity = check(Path("int8"), "torch", [((torch.ones(2, 3),), {})], [torch.ones(2, 3)], Gate(), NoProcess())
    assert parity.complaint == "NotImplementedError: no such kernel"
    assert "there is no memory" in parity.note


def test_each_output_needs_an_excuse_of_its_own() -> None:
    far = Parity(100, 12.0, 1.0, agreement=0.95, outputs=(26.0, 12.0))
    assert not far.is_explained_by(Parity(100, 14.0, 1.0, agreement=1.0, outputs=(90.0, 14.0)), Gate())
    assert far.is_explained_by(Parity(100, 14.0, 1.0, agreement=0.96, outputs=(28.0, 14.0)), Gate())
    third = Parity(100, 10.0, 1.0, agreement=1.0, outputs=(60.0, 20.0, 10.0))
    assert not third.is_explained_by(Parity(100, 11.0, 1.0, agreement=1.0, outputs=(90.0, 90.0, 11.0)), Gate())


def test_an_output_that_is_no_number_never_passes() -> None:
    x = torch.randn(8, 5)
    assert not measure([(x, x)], [(x, x * math.nan)], Gate()).passed


def test_zeros_need_not_be_so_to_the_last_bit() -> None:
    x, zeros = torch.randn(8, 5), torch.zeros(8, 3)
    assert measure([(x, zeros)], [(x, zeros + 1e-9)], Gate()).passed
    assert not measure([(x, zeros)], [(x, zeros + 1e-3)], Gate()).passed
