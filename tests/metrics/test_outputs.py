from collections import OrderedDict, namedtuple

import pytest
import torch
from torch.utils._pytree import register_pytree_node

from lq.metrics.outputs import describe, main_first, main_tensor, targets_of

Outputs = namedtuple("Outputs", ["logits", "aux"])
LOGITS = torch.zeros(4, 10)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS},
        OrderedDict(loss=torch.tensor(1.0), logits=LOGITS, hidden=torch.zeros(4, 7, 8)),
        Outputs(LOGITS, torch.zeros(4, 3)),
        (torch.zeros(4, 5, dtype=torch.long), [torch.zeros(4), {"deep": LOGITS}]),
        [None, "text", LOGITS],
    ],
)
def test_main_tensor_is_the_first_floating_one_with_two_dimensions(output):
    assert main_tensor(output) is LOGITS


def test_main_tensor_falls_back_to_fewer_dimensions():
    values = torch.zeros(4)
    assert main_tensor((torch.tensor([1, 2]), values)) is values


@pytest.mark.parametrize("output", [None, {}, torch.zeros(3, 3, dtype=torch.long), "logits", [1.0]])
def test_main_tensor_refuses_an_output_without_scores(output):
    with pytest.raises(ValueError, match=r"holds no floating tensor to compare; .* return scores"):
        main_tensor(output)


@pytest.mark.parametrize(
    "batch",
    [
        ("x", "labels!"),
        ["x", "labels!"],
        ("x", "mask", "labels!"),
        {"input_ids": 1, "labels": "labels!"},
        {"image": 1, "label": "labels!"},
        {"target": "labels!"},
        {"x": 1, "y": "labels!"},
    ],
)
def test_targets_of_the_usual_layouts(batch):
    assert targets_of(batch) == "labels!"


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (torch.zeros(4, 3), r"Tensor float32 \(4, 3\)"),
        ((torch.zeros(4, 3),), r"tuple of 1 \(Tensor float32 \(4, 3\)\)"),
        ({"image": torch.zeros(2), "classes": 1}, "dict {'image': Tensor float32 \\(2,\\), 'classes': int}"),
    ],
)
def test_targets_of_refuses_an_unknown_layout_with_the_remedy(batch, text):
    with pytest.raises(ValueError, match=rf"no labels found in the batch, {text}.*give target_fn, e.g."):
        targets_of(batch)


def test_describe_keeps_long_structures_short():
    assert describe([1] * 100) == "list of 100 (int, int, int, int, ...)"


class Registered:
    def __init__(self, logits):
        self.logits = logits


def test_main_tensor_looks_into_registered_classes():
    register_pytree_node(Registered, lambda r: ([r.logits], None), lambda parts, _: Registered(*parts))
    assert main_tensor([Registered(LOGITS)]) is LOGITS


def test_complex_outputs_are_compared_by_their_real_and_imaginary_parts():
    output = {"wave": torch.complex(torch.ones(2), torch.full((2,), 3.0)).conj(), "loss": torch.tensor(0.1)}
    wave, loss = main_first(output)
    assert wave.tolist() == [[1, -3], [1, -3]]
    assert loss == 0.1
