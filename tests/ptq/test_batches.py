from collections import UserDict

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import lq
from lq.ptq.batches import call_of_batch, first_batches, run_batch


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


class _Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, first, second, weight=None):
        out = self.left(first) + self.right(second)
        return out if weight is None else out * weight


x, z, labels = torch.ones(2, 4), torch.zeros(2, 4), torch.tensor([0, 1])


def _given(model, batch):
    args, kwargs = call_of_batch(model, batch)
    return len(args), sorted(kwargs)


@pytest.mark.parametrize("batch", [(x, z, labels), [x, z, labels], (x, z)])
def test_a_tuple_begins_with_the_inputs_that_forward_cannot_do_without(batch):
    assert _given(_Pair(), batch) == (2, [])


@pytest.mark.parametrize(
    ("args", "kwargs", "count"),
    [((x, z), {}, 2), ((x, z, x[:, :3]), {}, 3), ((x, z), {"weight": x[:, :3]}, 3), ((), {"first": x, "second": z}, 2)],
)
def test_a_prepared_module_takes_as_many_elements_as_it_was_planned_with(args, kwargs, count):
    prepared = lq.prepare(_Pair(), example_args=args, example_kwargs=kwargs)
    assert _given(prepared, (x, z, x[:, :3], labels)) == (count, [])


def test_labels_of_a_mapping_are_left_out_unless_they_are_an_input():
    class Teacher(nn.Module):
        def forward(self, x, y, labels=None):
            return x + y

    assert _given(Teacher(), {"x": x, "y": z, "labels": labels}) == (0, ["x", "y"])


def test_a_mapping_that_forward_does_not_take_apart_is_the_only_input():
    class Whole(nn.Module):
        def forward(self, batch):
            return batch["image"] * 2

    assert run_batch(Whole(), {"image": x, "label": labels}).tolist() == (2 * x).tolist()


def test_a_mapping_that_is_not_taken_at_all_is_refused():
    with pytest.raises(ValueError, match=r"Linear takes neither the batch, dict.*image.*, nor its entries.*call="):
        run_batch(nn.Linear(4, 2), {"image": x, "label": labels})


def test_a_list_of_images_is_one_input():
    class Detects(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, images, targets=None):
            return [self.conv(image).mean((1, 2)) for image in images]

    images = [torch.rand(3, 8, 8), torch.rand(3, 8, 8)]
    prepared = lq.prepare(Detects(), example_args=(images,))
    for batch in (images, tuple(images), (images, [labels, labels])):
        (given,), kwargs = call_of_batch(prepared, batch)
        assert len(given) == 2
        assert kwargs == {}


def test_calibration_and_export_read_the_same_loader(tmp_path):
    data = torch.utils.data.TensorDataset(torch.randn(32, 4), torch.randn(32, 4), torch.zeros(32))
    loader = torch.utils.data.DataLoader(data, batch_size=16)
    prepared = lq.prepare(_Pair(), example_args=(x, z))
    lq.calibrate(prepared, loader, show_progress=False)
    done = lq.export_artifact(prepared, loader, tmp_path / "int8", ["torch"])
    assert done.parity["torch"].passed
