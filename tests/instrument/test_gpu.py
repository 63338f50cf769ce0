"""What test_fake_gpu.py proves without a GPU, once more on one."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from lq.backends.prepare import set_phase, state_of
from lq.core.straight_through import exact, marking
from tests.instrument.test_fake_gpu import NETS, PHASES, QCONFIGS, images, made

pytestmark = pytest.mark.gpu


@pytest.fixture
def forbid_waiting():
    """Calling it makes every wait for the GPU an error, for the rest of the test."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("net", "qconfig"), [*(("cnn", name) for name in QCONFIGS), ("transformer", "learned")])
def test_no_step_waits_for_the_gpu(net, qconfig, dtype, forbid_waiting):
    prepared, x = made(NETS[net](), QCONFIGS[qconfig]).cuda(), images().cuda()

    def step():
        with torch.autocast("cuda", dtype, enabled=dtype is not None):
            outputs = tree_leaves(prepared(x))
        sum(out.float().square().mean() for out in outputs).backward()

    step()  # the first one copies its inputs to the CPU
    forbid_waiting()
    for phase in PHASES.values():
        set_phase(prepared, **phase)
        for _ in range(2):
            step()
    torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(p.grad).all() for p in prepared.parameters() if p.grad is not None)


@pytest.mark.parametrize(("dtype", "of_one"), [(torch.float32, marking), (torch.bfloat16, exact)])
def test_what_follows_from_all_ranges_at_once_is_that_of_each(dtype, of_one):
    state = state_of(made(NETS["cnn"](), QCONFIGS["tensorrt"]).cuda())
    for slot in range(len(state.names)):
        assert all(map(torch.equal, state.rounding(slot, dtype), of_one(*state.slot_qparams(slot))))
