import subprocess
import sys
import warnings

import pytest
import torch

from lq.compat.deprecations import quiet_torchscript


def test_torchscript_and_int8_tensors_are_quiet_inside():
    with quiet_torchscript():
        traced = torch.jit.trace(torch.nn.ReLU(), torch.zeros(1))
        torch.jit.freeze(traced.eval())
        torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)


def test_other_warnings_still_come_through():
    with pytest.warns(FutureWarning, match="torch.jit is fine"), quiet_torchscript():
        warnings.warn("torch.jit is fine", FutureWarning, stacklevel=1)
    with pytest.warns(UserWarning, match="mine"), quiet_torchscript():
        warnings.warn("mine", UserWarning, stacklevel=1)


def test_the_filters_end_with_the_context():
    before = list(warnings.filters)
    with quiet_torchscript():
        assert list(warnings.filters) != before
    assert list(warnings.filters) == before


INT8_TENSORS_IN_TORCHSCRIPT = """
import torch
from lq.compat.deprecations import quiet_torchscript

class Round(torch.nn.Module):
    def forward(self, x):
        return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).dequantize()

with quiet_torchscript():
    traced = torch.jit.trace(Round(), torch.zeros(1))
print(traced(torch.ones(2)))
"""


def test_nothing_reaches_stderr_past_the_filters():
    done = subprocess.run(
        [sys.executable, "-c", INT8_TENSORS_IN_TORCHSCRIPT], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("tensor([1., 1.])\n", "")
