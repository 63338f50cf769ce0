from __future__ import annotations

import pytest
from torch import nn

from lq.core.modes import modes_kept


def test_modes_come_back_after_an_error_too() -> None:
    first, second = nn.Sequential(nn.Dropout(), nn.Dropout()), nn.Dropout()
    first[0].eval()
    with pytest.raises(IndexError), modes_kept(first, second):
        (first.train(), second.eval())[2]
    assert [module.training for module in (first, first[0], first[1], second)] == [True, False, True, True]
