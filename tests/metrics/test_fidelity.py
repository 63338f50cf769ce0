import math

import numpy as np
import pytest
import torch
from torchmetrics.audio import SignalNoiseRatio

from lq.metrics.accumulated import SQNR, MaxAbsError, Top1Agreement
from lq.metrics.fidelity import max_abs_error, sqnr, top1_agreement

PAIRS = [(sqnr, SQNR), (top1_agreement, Top1Agreement), (max_abs_error, MaxAbsError)]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def outputs(request):
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(64, 10, generator=generator)
    noisy = exact + 0.2 * torch.randn(64, 10, generator=generator)
    return exact.to(request.param), noisy.to(request.param)


def test_sqnr_is_the_ratio_of_norms_in_decibel(outputs):
    x, y = (t.cpu().numpy().astype(np.float64) for t in outputs)
    expected = 20 * math.log10(np.linalg.norm(x) / np.linalg.norm(x - y))
    assert sqnr(*outputs).item() == pytest.approx(expected, rel=1e-12)  # both sums are float64


def test_sqnr_equals_the_signal_to_noise_ratio_of_torchmetrics():
    x, y = torch.randn(1, 500), torch.randn(1, 500)
    expected = SignalNoiseRatio()(preds=y, target=x).item()
    assert sqnr(x, y).item() == pytest.approx(expected, abs=1e-3)  # that one is float32 with an eps


def test_sqnr_at_the_edges():
    x = torch.randn(3, 4)
    assert sqnr(x, x).item() == math.inf
    assert sqnr(torch.zeros(3), torch.zeros(3)).item() == math.inf
    assert sqnr(torch.zeros(3), torch.ones(3)).item() == -math.inf
    assert sqnr(x, torch.zeros(3, 4)).item() == pytest.approx(0, abs=1e-12)  # the noise is the signal itself
    assert math.isnan(sqnr(x, torch.full((3, 4), math.nan)).item())


def test_sqnr_accumulates_in_float64():
    x = torch.ones(2**25)  # a float32 running sum of ones stops at 2**24
    y = x.clone()
    y[-1] = 0
    assert sqnr(x, y).item() == pytest.approx(10 * math.log10(2**25), rel=1e-12)


def test_sqnr_of_half_precision_and_integers():
    x, y = torch.tensor([300.0]).half(), torch.tensor([299.0]).half()  # 300 ** 2 overflows float16
    assert sqnr(x, y).item() == pytest.approx(20 * math.log10(300))
    assert sqnr(torch.tensor([30]), torch.tensor([27])).item() == pytest.approx(20)


def test_top1_agreement_counts_equal_choices(outputs):
    a, b = outputs
    expected = np.mean(a.cpu().numpy().argmax(1) == b.cpu().numpy().argmax(1))
    assert 0 < expected < 1
    assert top1_agreement(a, b).item() == pytest.approx(expected)


def test_top1_agreement_of_dense_predictions_counts_pixels():
    a = torch.tensor([1.0, 0.5]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
    b = a.clone()
    b[0, 1, 0, 0] = 2
    assert top1_agreement(a, b).item() == 0.75


def test_of_several_largest_scores_of_the_reference_each_is_right():
    tied, constant = torch.tensor([[2.0, 2.0, 1.0]]), torch.zeros(1, 3)
    assert top1_agreement(tied, torch.tensor([[0.0, 1.0, 0.0]])).item() == 1
    assert top1_agreement(tied, torch.tensor([[0.0, 0.0, 1.0]])).item() == 0
    assert top1_agreement(torch.tensor([[1.0, 2.0, 1.0]]), constant).item() == 0, "a dead model agrees with nobody"


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 3)])
def test_top1_agreement_needs_classes(shape):
    with pytest.raises(ValueError, match=r"no classes to choose from.*C >= 2"):
        top1_agreement(torch.zeros(shape), torch.zeros(shape))


def test_max_abs_error(outputs):
    a, b = outputs
    expected = np.abs(a.cpu().numpy().astype(np.float64) - b.cpu().numpy()).max()
    assert max_abs_error(a, b).item() == expected
    assert max_abs_error(a, b) == max_abs_error(b, a)


@pytest.mark.parametrize("function", [sqnr, top1_agreement, max_abs_error])
def test_shapes_must_be_equal_and_are_not_broadcast(function):
    with pytest.raises(ValueError, match=r"shapes \(4, 3\) and \(1, 3\) differ"):
        function(torch.zeros(4, 3), torch.zeros(1, 3))


@pytest.mark.parametrize(("function", "metric_class"), PAIRS)
def test_the_class_over_uneven_batches_is_the_function_over_all(function, metric_class, outputs):
    a, b = outputs
    metric = metric_class().to(a.device)
    for part in (slice(0, 5), slice(5, 30), slice(30, 64)):
        metric.update(a[part], b[part])
    assert metric.compute().item() == pytest.approx(function(a, b).item(), rel=1e-12)  # float64, other order
    metric.reset()
    metric.update(a[:5], b[:5])
    assert metric.compute().item() == pytest.approx(function(a[:5], b[:5]).item(), rel=1e-12)


@pytest.mark.parametrize(("function", "metric_class"), PAIRS)
def test_the_class_survives_a_change_from_inference_mode_to_training(function, metric_class, outputs):
    a, b = outputs
    metric = metric_class().to(a.device)
    with torch.inference_mode():
        metric.update(a[:30], b[:30])
    metric.update(a[30:], b[30:])
    assert metric.compute().item() == pytest.approx(function(a, b).item(), rel=1e-12)


@pytest.mark.parametrize(("function", "metric_class"), PAIRS)
def test_the_class_reduces_over_processes(function, metric_class, outputs):
    """What two processes gathered is reduced as the state declares it: sums and maxima."""
    a, b = outputs
    parts = [metric_class().to(a.device) for _ in range(2)]
    parts[0].update(a[:20], b[:20])
    parts[1].update(a[20:], b[20:])
    reduced = metric_class().to(a.device)
    reduced.update(a[:20], b[:20])
    for name, reduce in reduced._reductions.items():
        setattr(reduced, name, reduce(torch.stack([getattr(part, name) for part in parts])))
    assert reduced.compute().item() == pytest.approx(function(a, b).item(), rel=1e-12)
