import pytest
import torch
from torch import nn

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
