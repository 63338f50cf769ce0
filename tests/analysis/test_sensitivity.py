import json

import pytest
import torch
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.regression import MeanSquaredError

from lq.analysis.sensitivity import SensitivityOptions, _Run, most_sensitive, sensitivity
from lq.backends.prepare import prepare, state_of
from lq.metrics import classification_metric
from lq.ptq import prepare_static
from tests.analysis.planted import BAD, PER_TENSOR, make_batches, make_planted

LAYERS = ["0", "3", "6", "8", "13"]


@pytest.fixture
def batches():
    return make_batches()


@pytest.fixture
def prepared(batches):
    return prepare_static(make_planted(), batches, PER_TENSOR)


@pytest.mark.parametrize("direction", ["one", "all_but_one"])
@pytest.mark.parametrize(
    "metric", [None, classification_metric(4), MeanSquaredError()], ids=["sqnr", "accuracy", "mse"]
)
def test_a_planted_layer_is_found(prepared, batches, direction, metric):
    def scores(batch):
        return make_planted()(batch[0])

    options = SensitivityOptions(target_fn=scores) if isinstance(metric, MeanSquaredError) else None
    rows = sensitivity(prepared, batches, metric, direction, options=options)
    assert [row["layer"] for row in rows] == LAYERS
    worst, second = most_sensitive(rows)[:2]
    assert worst["layer"] == BAD
    assert worst["share"] > 0.8
    assert second["share"] < 0.2
    if isinstance(metric, MulticlassAccuracy):
        assert worst["float_value"] == 1.0


def test_two_planted_layers_are_the_first_two(batches):
    prepared = prepare_static(make_planted(("3", "8")), batches, PER_TENSOR)
    rows = sensitivity(prepared, batches, direction="one")
    assert {row["layer"] for row in most_sensitive(rows)[:2]} == {"3", "8"}


def test_without_planted_layers_no_one_stands_out(batches):
    prepared = prepare_static(make_planted(()), batches, PER_TENSOR)
    rows = sensitivity(prepared, batches, direction="one")
    assert min(row["value"] for row in rows) > 30  # 8 bits


def test_the_model_is_left_as_it_was(prepared, batches):
    x = batches[0][0]
    before, flags = prepared(x), [m.training for m in prepared.modules()]
    state_of(prepared).fake_quant = True
    sensitivity(prepared, batches, direction="one")
    assert torch.equal(prepared(x), before)
    assert [m.training for m in prepared.modules()] == flags
    assert all(part.__dict__.get("state", state_of(prepared)) is state_of(prepared) for part in prepared.modules())


def test_every_layer_is_judged_by_the_same_batches(prepared, batches):
    """An iterator that gives other data each time it is asked, as a shuffling loader does."""

    class Shuffling:
        def __iter__(self):
            return iter([(torch.randn(8, 1, 8, 8), torch.zeros(8)) for _ in range(2)])

    seen = []
    sensitivity(
        prepared,
        Shuffling(),
        direction="one",
        options=SensitivityOptions(call=lambda p, b: seen.append(b[0].sum().item()) or p(b[0])),
    )
    assert len(set(seen)) == 2


def test_an_interrupted_run_goes_on(prepared, batches, tmp_path, monkeypatch):
    path = tmp_path / "deep" / "rows.json"
    whole = sensitivity(prepared, batches, direction="one")
    original, left = _Run.value, [4]

    def value(self, layers):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(self, layers)

    monkeypatch.setattr(_Run, "value", value)
    with pytest.raises(KeyboardInterrupt):
        sensitivity(prepared, batches, direction="one", resume_file=path)
    assert list(json.loads(path.read_text())["results"]) == LAYERS[:3]
    left[0] = 1 + len(LAYERS) - 3  # all layers, and those that are missing
    assert sensitivity(prepared, batches, direction="one", resume_file=path) == whole
    assert left[0] == 0


@pytest.mark.parametrize("change", ["direction", "metric", "model", "data"])
def test_a_file_of_something_else_is_refused(prepared, batches, tmp_path, change):
    path = tmp_path / "rows.json"
    sensitivity(prepared, batches, direction="one", resume_file=path)
    direction = "all_but_one" if change == "direction" else "one"
    metric = classification_metric(4) if change == "metric" else None
    if change == "model":
        with torch.no_grad():
            prepared.get_submodule("0").weight.mul_(1.01)
    named = {"data": "results on the data"}.get(change, change)
    with pytest.raises(ValueError, match=rf"rows.json' belongs to something else: .*{named}.* Delete it"):
        sensitivity(prepared, batches[: 1 if change == "data" else None], metric, direction, path)


def test_a_file_that_holds_no_results_is_refused(prepared, batches, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"holds no results .*; delete it"):
        sensitivity(prepared, batches, resume_file=path)


class Quiet(Metric):
    """Does not say whether higher is better."""

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.tensor(0.0))

    def update(self, preds, target):
        self.total += (preds.argmax(1) == target).float().mean()

    def compute(self):
        return self.total


def test_a_metric_has_to_say_which_way_is_better(prepared, batches):
    with pytest.raises(ValueError, match=r"Quiet does not say whether higher is better; set higher_is_better = True"):
        sensitivity(prepared, batches, Quiet())
    rows = sensitivity(prepared, batches, Quiet(), options=SensitivityOptions(higher_is_better=True))
    assert most_sensitive(rows)[0]["layer"] == BAD


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        ("acc", TypeError, "metric='acc' .* give a single torchmetrics metric"),
        (MulticlassAccuracy(4, average=None), ValueError, r"gives 4 values \(accuracy_0, .* average them"),
    ],
)
def test_a_metric_of_another_kind_is_refused(prepared, batches, metric, error, message):
    with pytest.raises(error, match=message):
        sensitivity(prepared, batches, metric)


def test_wrong_calls_are_refused(prepared, batches):
    with pytest.raises(ValueError, match=r"direction='both' is unknown; choose one of \['one', 'all_but_one'\]"):
        sensitivity(prepared, batches, direction="both")
    with pytest.raises(ValueError, match=r"sensitivity\(\) got no batch"):
        sensitivity(prepared, [])
    with pytest.raises(ValueError, match=r"needs ranges.*call lq.calibrate"):
        sensitivity(prepare(make_planted()), batches)
