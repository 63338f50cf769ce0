"""Compiles the fake quantizer, forward and backward, so that inductor shows the code that it makes of it.

TORCH_LOGS=output_code python -m benchmarks.generated_code --device cuda
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks._common import parse, parser
from benchmarks.ops import lq_module


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both phases once; the code goes where TORCH_LOGS says."""
    options = parser("Compiles the fake quantizer; TORCH_LOGS=output_code shows the code.", rounds=None)
    options.add_argument("--shape", default="16,96,48,48", help="of the activation (default: 16,96,48,48)")
    parsed = parse(options, arguments)
    shape = [int(size) for size in parsed.shape.split(",")]
    x = torch.randn(shape, device=parsed.device, requires_grad=True)
    for observer in (True, False):
        loss: torch.Tensor = torch.compile(lq_module(observer, x.detach()))(x).sum()
        loss.backward()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
