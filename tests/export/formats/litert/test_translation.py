"""Programs that LiteRT has no words for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lq.export.formats.litert.call import UnsupportedError
from tests.export.formats.litert.ran import in_float

pytest.importorskip("ai_edge_litert")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_an_input_of_another_floating_type_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=f"input 'x' is {dtype}.*give the model float32".replace("torch.", "")):
        in_float(lambda x: 2 * x, torch.ones(2, 3, dtype=dtype), directory=tmp_path)
