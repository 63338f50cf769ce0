from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lq
from lq.conversion.graph import as_graph
from lq.tracing.batch import fixed_batch
from lq.tracing.images import check_one_size, image_list, run_in_parts, with_images
from lq.tracing.structure import Inputs
from tests.detectors import DETECTORS, photographs
from tests.tiny import quicken_deployment

Pair = namedtuple("Pair", "first second")
IMAGES = [torch.zeros(3, 8, 8), torch.zeros(3, 9, 8)]


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (((IMAGES,), {}), True),
        (((), {"images": IMAGES, "flag": 2}), True),
        (((IMAGES, torch.zeros(2)), {}), False),
        (((tuple(IMAGES),), {}), True),
        (((Pair(*IMAGES),), {}), False),
        (((tuple(IMAGES), IMAGES), {}), False),
        ((([torch.zeros(1, 3, 8, 8)],), {}), False),
        ((([*IMAGES, None],), {}), False),
        (((torch.zeros(3, 8, 8),), {}), False),
        (((), {}), False),
    ],
)
def test_lists_of_images_are_told_from_other_calls(inputs: Inputs, found: bool) -> None:
    assert (image_list(inputs) is not None) == found


@pytest.mark.parametrize("inputs", [((IMAGES, 3), {"flag": True}), ((3,), {"images": tuple(IMAGES)})])
def test_only_the_images_are_changed(inputs: Inputs) -> None:
    other = [torch.ones(3, 8, 8)]
    args, kwargs = with_images(inputs, other)
    found = image_list((args, kwargs))
    assert type(found) is type(image_list(inputs))
    assert list(found) == other
    assert [v for v in (*args, *kwargs.values()) if v is not found] == [
        v for v in (*inputs[0], *inputs[1].values()) if v is not image_list(inputs)
    ]


def test_images_of_several_sizes_have_no_graph() -> None:
    same: list[Tensor] = [torch.zeros(3, 8, 8)] * 2
    check_one_size(same, "Net")
    with pytest.raises(
        ValueError, match=r"Net was called with images of the sizes \(3, 8, 8\), \(3, 9, 8\), but .*Resi"
    ):
        check_one_size(IMAGES, "Net")


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("given", [1, 2, 3, 5, 6])
def test_lists_of_any_length_are_run_in_parts(count: int, given: int) -> None:
    def run(images: list[Tensor], offset: float) -> list[float]:
        assert len(images) == count
        return [float(image.mean()) + offset for image in images]

    images = [torch.full((3, 2, 2), float(i)) for i in range(given)]
    for held in (images, tuple(images), torch.stack(images)):
        assert run_in_parts(run, ((held,), {"offset": 0.5}), count) == [i + 0.5 for i in range(given)]


def test_what_holds_no_images_is_run_as_it_is() -> None:
    assert run_in_parts(lambda x: x, ((torch.zeros(4, 3, 8),), {}), 1).shape == (4, 3, 8)


class OfFeatures(nn.Module):
    """Takes a list of tensors of shape (batch, time, channels), and is no detector."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [self.layer(feature) for feature in features]


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("times", [(5, 5), (5, 7)])
def test_lists_of_features_keep_a_dynamic_batch(
    kind: Callable[[Any], Sequence[Tensor]], times: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken_deployment(monkeypatch)
    few, many = (kind([torch.randn(batch, time, 8) for time in times]) for batch in (4, 9))
    prepared = lq.prepare(OfFeatures(), example_args=(few,))
    lq.calibrate(prepared, [(few,)])
    lq.export_artifact(prepared, [(few,)], tmp_path / "int8", ["torch"])
    assert [tuple(y.shape) for y in lq.load(tmp_path / "int8")(many)] == [(9, time, 4) for time in times]


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_detector_takes_a_list_or_a_tuple(kind: Callable[[Any], Sequence[Tensor]]) -> None:
    images = kind([image for image, _ in photographs(2)])
    batch = fixed_batch(as_graph(lq.prepare(DETECTORS["RetinaNet"](), example_args=(images,))))
    assert batch is not None
    assert batch.images
    assert batch.size == 2
