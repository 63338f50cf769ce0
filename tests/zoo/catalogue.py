"""All entries of the zoo, by name."""

from __future__ import annotations

import re

from tests.zoo import of_einops, of_smp, of_timm, of_torch, of_torchvision, of_transformers
from tests.zoo.entry import Entry

CATALOGUE: dict[str, Entry] = {}
for _room in (of_torch, of_einops, of_torchvision, of_timm, of_transformers, of_smp):
    for _entry in _room.entries():
        assert _entry.name not in CATALOGUE, _entry.name
        CATALOGUE[_entry.name] = _entry


def select(pattern: str = "") -> list[Entry]:
    """The entries in whose name a regular expression is found; an empty one is found in all."""
    return [entry for name, entry in CATALOGUE.items() if re.search(pattern, name)]
