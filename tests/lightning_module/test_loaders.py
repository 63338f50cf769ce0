from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lq.lightning_module.loaders import spread, training_data, undistributed
from tests.tiny import Tiny, make_data, train_loader


class WithData(Tiny):
    def prepare_data(self) -> None:
        self.calls = ["prepare_data"]

    def setup(self, stage: str) -> None:
        self.calls.append(stage)

    def train_dataloader(self) -> Any:
        return train_loader()


def test_data_without_a_run() -> None:
    module = WithData()
    assert [len(loader) for loader in training_data(module)] == [3]
    assert module.calls == ["prepare_data", "fit"]


def test_each_structure_of_loaders_is_kept() -> None:
    sampler: Any = DistributedSampler(make_data(6), num_replicas=2, rank=0)
    share = DataLoader(make_data(6), batch_size=3, sampler=sampler)
    whole = undistributed({"a": [share, share], "b": share})
    assert [len(list(loader)) for loader in (*whole["a"], whole["b"])] == [2, 2, 2]
    assert undistributed([1, 2]) == [1, 2]


def test_so_is_the_way_in_which_they_are_combined() -> None:
    sampler: Any = DistributedSampler(make_data(6), num_replicas=2, rank=0)
    share = DataLoader(make_data(6), batch_size=3, sampler=sampler)
    whole = undistributed(CombinedLoader({"a": share, "b": [1, 2, 3]}, "max_size"))
    assert [(batch["a"] is None, batch["b"]) for batch, _, _ in whole] == [(False, 1), (False, 2), (True, 3)]


NUMBERS: Any = list(range(1000))


def test_the_users_sampler_chooses_the_samples() -> None:
    split = DataLoader(NUMBERS, batch_size=4, sampler=SubsetRandomSampler(range(900, 1000)))
    assert [batch.tolist() for batch in spread(split, 1)] == [[900, 933, 966, 999]]
    assert sorted(torch.cat(list(spread(split, 100))).tolist()) == NUMBERS[900:]
    part = DataLoader(NUMBERS, batch_size=2, sampler=SequentialSampler(range(10)))
    assert [batch.tolist() for batch in spread(part, 1)] == [[0, 9]]
    weighted = DataLoader(NUMBERS, batch_size=2, sampler=WeightedRandomSampler([1.0], 10))
    assert spread(weighted, 1) is weighted


@pytest.mark.parametrize("package", ["lightning.fabric", "lightning_fabric"])
def test_only_the_sharing_of_lightning_is_taken_away(package: str) -> None:
    pytest.importorskip("pytorch_lightning")
    wrapper: Any = importlib.import_module(f"{package}.utilities.distributed").DistributedSamplerWrapper

    def share(of: Any) -> Any:
        return wrapper(of, num_replicas=2, rank=0, shuffle=False)

    split = SubsetRandomSampler(range(900, 1000))
    loaders = [
        DataLoader(NUMBERS, batch_size=4, sampler=share(split)),
        DataLoader(NUMBERS, batch_size=None, sampler=share(split)),
        DataLoader(NUMBERS, batch_sampler=BatchSampler(share(split), 4, drop_last=False)),
    ]
    for whole in undistributed(loaders):
        drawn = [number for batch in whole for number in torch.as_tensor(batch).flatten().tolist()]
        assert sorted(drawn) == NUMBERS[900:]
    assert [batch.tolist() for batch in spread(loaders[0], 1)] == [[900, 933, 966, 999]]
    assert len(loaders[0].sampler) == 50, "the user's loader stays as it is"  # type: ignore[arg-type]


def test_a_last_batch_is_dropped_where_the_loader_drops_it() -> None:
    loader: Any = DataLoader(NUMBERS[:10], batch_size=4, drop_last=True)
    assert [len(batch) for batch in spread(loader, 5)] == [4, 4]


class _Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(9))


def test_batches_are_drawn_from_all_over_the_data() -> None:
    sorted_by_class = DataLoader(torch.arange(100).tolist(), batch_size=5)  # type: ignore[arg-type]
    batches = [batch.tolist() for batch in spread(sorted_by_class, 2)]
    assert batches == [[0, 11, 22, 33, 44], [55, 66, 77, 88, 99]]
    assert [len(batch) for batch in spread(sorted_by_class, 30)] == [5] * 20


@pytest.mark.parametrize("count", [2**24 + 4, 10**9])
def test_more_samples_than_float32_can_count_are_drawn_to_the_last(count: int) -> None:
    batches = [batch.tolist() for batch in spread(DataLoader(range(count), batch_size=1), 2)]  # type: ignore[arg-type]
    assert batches == [[0], [count - 1]]


@pytest.mark.parametrize(
    "loader", [DataLoader(_Stream(), batch_size=2), DataLoader([[1, 2]], batch_size=None), [[1, 2]]]
)
def test_what_cannot_be_indexed_stays_as_it_is(loader: Any) -> None:
    assert spread(loader, 1) is loader or spread(loader, 1) == loader


@pytest.mark.parametrize(
    "loaders",
    [
        {"a": train_loader(16), "b": train_loader(8)},
        [train_loader(16), {"b": [train_loader(8)]}],
        CombinedLoader({"a": train_loader(16), "b": train_loader(8)}, "max_size_cycle"),
    ],
    ids=["mapping", "nested", "combined"],
)
def test_loaders_are_found_in_any_structure(loaders: Any) -> None:
    class Several(Tiny):
        def train_dataloader(self) -> Any:
            return loaders

    assert [len(loader) for loader in training_data(Several())] == [2, 1]


class Hundredfold(DataLoader[Any]):
    """Changes its batches."""

    def __iter__(self) -> Any:
        for x, y in super().__iter__():
            yield 100 * x, y


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_changes_its_batches_still_does(workers: int) -> None:
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0, "batch_size": 4}
    loader = Hundredfold(make_data(24), **options)
    first = next(iter(loader))[0]
    (x, _), (last, _) = list(spread(loader, 2))
    assert torch.equal(x[0], first[0])
    assert torch.equal(last[-1], 100 * make_data(24)[23][0])
    assert len(list(loader)) == 6, "the loader itself is as it was"
