import math
import subprocess
import sys

import pytest
import torch
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy, MulticlassF1Score

from lq.metrics.comparison import ModelComparison, classification_metric, metric_name
from lq.metrics.fidelity import max_abs_error, sqnr, top1_agreement

LABELS = torch.zeros(4, dtype=torch.long)


def batches(count=3):
    generator = torch.Generator().manual_seed(0)
    for size in range(5, 5 + count):
        fake = torch.randn(size, 4, generator=generator)
        int8 = fake + 0.3 * torch.randn(size, 4, generator=generator)
        fp32 = torch.randn(size, 4, generator=generator)
        yield {"fp32": fp32, "fake": fake, "int8": int8}, torch.arange(size) % 4


def joined(name):
    return torch.cat([outputs[name] for outputs, _ in batches()])


TARGET = torch.cat([target for _, target in batches()])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_model_and_pair_over_all_batches(device):
    comparison = ModelComparison(["fp32", "fake", "int8"], pairs=[("fake", "int8")], device=device)
    for outputs, target in batches():
        comparison.update(outputs, target)
    results = comparison.compute()
    assert list(results) == ["fp32", "fake", "int8", "int8_vs_fake"]
    for name in ("fp32", "fake", "int8"):
        accuracy = (joined(name).argmax(1) == TARGET).double().mean().item()
        assert results[name] == {"accuracy": pytest.approx(accuracy)}
    fake, int8 = joined("fake"), joined("int8")
    assert results["int8_vs_fake"] == pytest.approx(
        {
            "agreement": top1_agreement(fake, int8).item(),
            "sqnr_db": sqnr(fake, int8).item(),
            "max_abs_error": max_abs_error(fake, int8).item(),
        }
    )
    assert 0 < results["int8_vs_fake"]["agreement"] < 1


def test_reference_and_other_are_not_swapped():
    comparison = ModelComparison(["a", "b"], MeanSquaredError(), pairs=[("a", "b"), ("b", "a")])
    one, two = torch.ones(2, 3), torch.full((2, 3), 3.0)
    comparison.update({"a": one, "b": two}, one)
    results = comparison.compute()
    assert results["b_vs_a"]["sqnr_db"] == pytest.approx(20 * math.log10(1 / 2))
    assert results["a_vs_b"]["sqnr_db"] == pytest.approx(20 * math.log10(3 / 2))
    assert (results["a"], results["b"]) == ({"mean_squared_error": 0.0}, {"mean_squared_error": 4.0})


def test_a_given_metric_is_cloned_without_its_state():
    metric = MulticlassAccuracy(num_classes=2, average="micro")
    wrong = torch.tensor([[0.0, 1.0]]), torch.tensor([0])
    metric.update(*wrong)
    comparison = ModelComparison(["a", "b"], metric)
    comparison.update({"a": torch.tensor([[1.0, 0.0]]), "b": torch.tensor([[0.0, 1.0]])}, torch.tensor([0]))
    assert comparison.compute() == {"a": {"accuracy": 1.0}, "b": {"accuracy": 0.0}}
    assert metric.compute() == 0, "the prototype saw only its own batch"
    assert metric.update_count == 1


def test_collections_and_metrics_with_several_values():
    metrics = [MulticlassAccuracy(num_classes=2), MulticlassF1Score(num_classes=2, average=None)]
    comparison = ModelComparison(["a"], MetricCollection(metrics))
    comparison.update({"a": torch.eye(2)}, torch.tensor([0, 1]))
    assert comparison.compute()["a"] == {
        "MulticlassAccuracy": 1.0,
        "MulticlassF1Score_0": 1.0,
        "MulticlassF1Score_1": 1.0,
    }


def test_structured_outputs_use_their_main_tensor():
    comparison = ModelComparison(["a", "b"], pairs=[("a", "b")])
    scores = torch.tensor([[2.0, 0.0]])
    outputs = {"a": {"loss": torch.tensor(3.0), "logits": scores}, "b": (scores, None)}
    comparison.update(outputs, torch.tensor([0]))
    assert comparison.compute() == {
        "a": {"accuracy": 1.0},
        "b": {"accuracy": 1.0},
        "b_vs_a": {"agreement": 1.0, "sqnr_db": math.inf, "max_abs_error": 0.0},
    }


class CountDetections(MeanSquaredError):  # noqa: N818
    """Takes lists of dicts as detection metrics do."""

    def update(self, preds, target):
        counts = [torch.tensor([float(len(item["boxes"])) for item in items]) for items in (preds, target)]
        super().update(*counts)


def test_lists_of_dicts_reach_the_metric_as_they_are():
    comparison = ModelComparison(["a"], CountDetections(), pairs=[("a", "a")])
    comparison.update({"a": [{"boxes": torch.zeros(3, 4)}]}, [{"boxes": torch.zeros(1, 4)}])
    assert comparison.compute()["a"] == {"count_detections": 4.0}


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_agreement_is_left_out_without_classes(shape):
    comparison = ModelComparison(["a", "b"], BinaryAccuracy(), pairs=[("a", "b")])
    outputs = {"a": torch.full(shape, 0.9), "b": torch.full(shape, 0.8)}
    comparison.update(outputs, torch.ones(shape, dtype=torch.long))
    results = comparison.compute()
    assert sorted(results["b_vs_a"]) == ["max_abs_error", "sqnr_db"]
    assert results["a"] == {"accuracy": 1.0}


def test_half_precision_outputs_and_gradients_are_no_obstacle():
    comparison = ModelComparison(["a"], MeanSquaredError())
    output = torch.full((3, 2), 300.0, dtype=torch.float16).requires_grad_()  # 300 ** 2 overflows float16
    comparison.update({"a": output}, torch.zeros(3, 2))
    assert comparison.compute()["a"]["mean_squared_error"] == 90000.0


def test_reset_forgets_batches_and_number_of_classes():
    comparison = ModelComparison(["a"])
    comparison.update({"a": torch.eye(2)}, torch.tensor([1, 0]))
    comparison.reset()
    comparison.update({"a": torch.eye(3)}, torch.tensor([0, 1, 2]))
    assert comparison.compute() == {"a": {"accuracy": 1.0}}


def test_evaluation_in_inference_mode_then_outside():
    comparison = ModelComparison(["fp32", "fake", "int8"], pairs=[("fake", "int8")])
    first, second, third = batches()
    with torch.inference_mode():
        comparison.update(*first)
    comparison.update(*second)
    with torch.inference_mode():
        comparison.update(*third)
    expected = sqnr(joined("fake"), joined("int8")).item()
    assert comparison.compute()["int8_vs_fake"]["sqnr_db"] == pytest.approx(expected)


TWO_PROCESSES = """
import sys
import torch
import torch.distributed as dist
from torchmetrics import MeanSquaredError, MetricCollection
from lq.metrics.comparison import ModelComparison

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
zeros = torch.zeros(2, 3)
for metric in (MeanSquaredError(), MetricCollection({"mean_squared_error": MeanSquaredError()})):
    everywhere = ModelComparison(["a", "b"], metric, pairs=[("a", "b")])
    alone = ModelComparison(["a", "b"], metric, pairs=[("a", "b")], sync_on_compute=False)
    for comparison in (everywhere, alone):
        comparison.update({"a": zeros + rank, "b": zeros + rank + 1 + rank}, zeros)
    if rank == 0:
        print("alone", alone.compute(), flush=True)  # would wait for rank 1 forever if it synchronised
    print("everywhere", everywhere.compute(), flush=True)
dist.destroy_process_group()  # or its threads may end the process with an error
"""


def test_sync_on_compute_decides_whether_processes_are_reduced(tmp_path):
    command = [sys.executable, "-c", TWO_PROCESSES]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    printed = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    # a: 0 and 1, b: 1 and 3; the differences are 1 and 2
    alone = "alone {'a': {'mean_squared_error': 0.0}, 'b': {'mean_squared_error': 1.0}, "
    both = "everywhere {'a': {'mean_squared_error': 0.5}, 'b': {'mean_squared_error': 5.0}, "
    assert [line[: len(alone)] for line in printed[0][::2]] == [alone] * 2
    assert [line[: len(both)] for line in printed[0][1::2] + printed[1]] == [both] * 4
    assert all("'max_abs_error': 1.0" in line for line in printed[0][::2])
    assert all("'max_abs_error': 2.0" in line for line in printed[1])


@pytest.mark.parametrize(
    ("metric", "output", "target", "text"),
    [
        (None, torch.zeros(4), LABELS, r"multiclass accuracy, does not fit .*output Tensor float32 \(4,\)"),
        (None, torch.zeros(4, 1), LABELS, r"float32 \(4, 1\), target Tensor int64 \(4,\)\."),
        (None, torch.zeros(4, 3), torch.zeros(4), r"Tensor float32 \(4,\) \(labels must be a tensor of"),
        (None, torch.zeros(4, 3), [0, 1, 2, 0], r"list of 4 .* \(labels must be a tensor of class"),
        (None, torch.zeros(4, 3), LABELS + 7, r"\(labels run from 7 to 7, classes from 0 to 2\)"),
        (None, torch.zeros(4, 3), LABELS - 1, r"\(labels run from -1 to -1"),
        (None, torch.zeros(4, 3), torch.zeros(5).long(), r"\(labels must have the shape \(4,\)\)"),
        (BinaryAccuracy(), torch.zeros(4, 3), LABELS, "metric BinaryAccuracy does not fit"),
        (MeanSquaredError(), torch.zeros(4, 3), "labels", "MeanSquaredError does not fit .*target str"),
    ],
)
def test_a_metric_that_does_not_fit_is_named_with_the_remedy(metric, output, target, text):
    with pytest.raises(ValueError, match=f"{text}.* Give a metric for this task.*target_fn"):
        ModelComparison(["a"], metric).update({"a": output}, target)


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"models": []}, ValueError, "must be different names"),
        ({"models": ["a", "a"]}, ValueError, r"models=\['a', 'a'\]"),
        ({"models": ["a"], "pairs": [("a", "c")]}, ValueError, r"pairs name \['c'\].*models \['a'\]"),
        ({"models": ["a"], "metric": "accuracy"}, TypeError, r"metric='accuracy' \(str\).*write e.g."),
    ],
)
def test_impossible_arguments_are_refused(kwargs, error, text):
    with pytest.raises(error, match=text):
        ModelComparison(**kwargs)


def test_missing_outputs_and_missing_batches_are_refused():
    comparison = ModelComparison(["a", "b"])
    with pytest.raises(ValueError, match=r"outputs of \['a'\] given, but \['a', 'b'\]"):
        comparison.update({"a": torch.eye(2)}, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="no batch was compared"):
        comparison.compute()


def test_classification_metric_needs_classes():
    with pytest.raises(ValueError, match=r"num_classes=1.*BinaryAccuracy"):
        classification_metric(1)


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (BinaryAccuracy(), "accuracy"),
        (MulticlassF1Score(num_classes=2), "f1_score"),
        (MeanSquaredError(), "mean_squared_error"),
    ],
)
def test_metric_name(metric, name):
    assert metric_name(metric) == name


@pytest.mark.parametrize("target", [torch.randn(4, 3), torch.ones(4, 3), torch.randn(4), None, ["a", "b", "c", "d"]])
def test_optional_leaves_the_default_metric_out(target):
    comparison = ModelComparison(["a", "b"], pairs=[("a", "b")], optional=True)
    for _ in range(2):
        comparison.update({"a": torch.ones(4, 3), "b": torch.ones(4, 3)}, target)
    results = comparison.compute()
    assert (results["a"], results["b"]) == ({}, {})
    assert results["b_vs_a"]["agreement"] == 1.0


def test_optional_takes_class_numbers_and_their_shares():
    comparison = ModelComparison(["a"], optional=True)
    comparison.update({"a": torch.eye(3)}, torch.arange(3))
    comparison.update({"a": torch.eye(3)}, torch.eye(3).flip(0))
    assert comparison.compute()["a"] == {"accuracy": pytest.approx(4 / 6)}
    with pytest.raises(ValueError, match="must be shares of the classes"):
        comparison.update({"a": torch.eye(3)}, torch.ones(3, 3))


def test_a_dropped_model_is_gone_and_the_others_go_on():
    comparison = ModelComparison(["fp32", "fake", "int8"], pairs=[("fake", "int8"), ("fake", "fp32")])
    for index, (outputs, target) in enumerate(batches()):
        if index == 1:
            comparison.drop("int8")
        comparison.update({name: outputs[name] for name in comparison.models}, target)
    results = comparison.compute()
    assert list(results) == ["fp32", "fake", "fp32_vs_fake"]
    assert results["fake"] == {"accuracy": pytest.approx((joined("fake").argmax(1) == TARGET).double().mean().item())}
