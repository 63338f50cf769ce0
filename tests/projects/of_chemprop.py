"""chemprop's message passing network, as in its tutorial on training."""

from __future__ import annotations

from typing import Any

from chemprop.data import MoleculeDatapoint, MoleculeDataset, build_dataloader
from chemprop.models import MPNN
from chemprop.nn import BondMessagePassing, MeanAggregation, RegressionFFN

from .case import Case, Fit

REQUIREMENTS = ("chemprop",)

HIDDEN = 64

CHAINS = [f"{head}{'C' * n}{tail}" for head in "CON" for n in range(1, 9) for tail in ("O", "F", "c1ccccc1")]


def _loader(chains: list[str], train: bool) -> Any:
    """Molecules, and how much carbon they hold."""
    points = [MoleculeDatapoint.from_smi(chain, [chain.upper().count("C") / 8]) for chain in chains]
    return build_dataloader(MoleculeDataset(points), batch_size=8, num_workers=0, shuffle=train)


def regression() -> Fit:
    passing = BondMessagePassing(d_h=HIDDEN)
    module = MPNN(passing, MeanAggregation(), RegressionFFN(input_dim=HIDDEN), batch_norm=True)
    loaders = {"train_dataloaders": _loader(CHAINS[::2], True), "val_dataloaders": _loader(CHAINS[1::2], False)}
    return Fit(module, loaders)


CASES = (
    Case(
        "MPNN",
        regression,
        "val/mse",
        arguments={"target": "message_passing"},
        reason="The number of molecules is a value of a tensor, which no graph can take a size from.",
    ),
)
