"""The count of operators; what it counts does not depend on the machine, so it has a bound."""

import json

import pytest
import torch
from torch import nn

from benchmarks import launches
from lq.backends.prepare import prepare, set_phase
from tests.instrument.nets import Net, images


def test_every_phase_is_counted(tmp_path, capsys):
    file = tmp_path / "launches.json"
    launches.main(["--models", "mlp", "--json", str(file)])
    rows = {row["step"]: row for row in json.loads(file.read_text())["rows"]}
    assert rows["lq, before start"]["operators"] == rows["float"]["operators"]
    assert rows["lq, observers off"]["added"] < rows["lq, observers on"]["added"]
    assert rows["lq, observers on"]["layers"] == 4
    assert "mlp" in capsys.readouterr().out


def test_views_and_memory_launch_nothing():
    with launches.Operators() as seen:
        x = torch.empty(4, 4, device="meta")
        x.view(16).unsqueeze(0).expand(2, 16)
        y = x.T.detach() + 1
        torch.empty_like(y).copy_(y)
        torch.zeros(3)  # on the CPU
    assert dict(seen.counts) == {"add": 1, "copy_": 1}


# An activation takes 4 operations forward, one to observe and 4 backward; a weight 13; all ranges 100 in each step,
# which shows in a net of 6 layers, and none while they stand still.
@pytest.mark.parametrize(("observer", "bound"), [(True, 43), (False, 26)])
def test_a_small_net_gets_so_many_and_not_more(observer, bound):
    def net() -> nn.Module:
        torch.manual_seed(0)
        return Net().train()

    floating = launches.operators(net(), images())
    prepared = prepare(net(), example_args=(images(),))
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    prepared(images())
    set_phase(prepared, fake_quant=True, observer=observer, freeze_bn=False)
    added = launches.operators(prepared, images()).total() - floating.total()
    assert added / 6 <= bound
