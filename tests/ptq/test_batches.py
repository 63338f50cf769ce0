from collections import UserDict

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from lq.ptq.batches import first_batches, run_batch


@pytest.mark.parametrize("batch", ["text", [], ["a", "b"], {"labels": torch.zeros(2)}, {"x": "text"}, 3])
def test_a_batch_without_tensors_is_refused(batch):
    with pytest.raises(ValueError, match=r"the batch, \w+.*, has no tensor .*give call="):
        run_batch(nn.Flatten(), batch)


def test_inputs_go_where_the_model_is():
    model = nn.Linear(2, 2, device="meta")
    assert run_batch(model, (torch.zeros(3, 2), torch.zeros(3))).device.type == "meta"


def test_limits():
    assert list(first_batches(iter(range(5)), None, "x")) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"x\(\): limit=0 must be at least 1;"):
        list(first_batches([1], 0, "x()"))
    with pytest.raises(ValueError, match=r"x\(\) got no batch"):
        list(first_batches([], 3, "x()"))


def test_mappings_of_other_classes_are_keywords():
    class Keywords(nn.Module):
        def forward(self, first, second):
            return first + second

    inputs = UserDict(first=torch.ones(2), second=torch.ones(2))
    for batch in (inputs, (inputs, torch.zeros(2)), {"first": torch.ones(2), "second": torch.ones(2)}):
        assert run_batch(Keywords(), batch).tolist() == [2, 2]


def test_batch_sizes_of_packed_sequences_stay_on_the_cpu():
    packed = pack_sequence([torch.ones(3, 4), torch.ones(2, 4)])

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, device="meta"))

        def forward(self, sequence):
            return sequence.data.device.type, sequence.batch_sizes.device.type

    assert run_batch(Steps(), {"sequence": packed}) == ("meta", "cpu")
