import pytest
import torch
from torch import nn

from lq.analysis.tensors import evaluating, require_ranges, tensors_of
from lq.backends.prepare import prepare, state_of
from lq.conversion.graph import as_graph
from lq.ptq import prepare_static
from tests.ptq.test_switch import Residual


def test_tensors_have_the_names_of_what_computes_them():
    assert [t.name for t in tensors_of(prepare(Residual()))] == ["x", "stem", "left.0", "right", "add", "mean", "head"]


def test_tensors_in_a_graph_have_the_names_of_the_plan():
    x = torch.randn(2, 1, 6, 6)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    prepared = prepare_static(net, [x])
    assert [t.name for t in tensors_of(as_graph(prepared, ((x,), {})))] == ["input_1", "0", "2", "4"]


def test_a_tensor_rounds_as_its_quantizer_does():
    torch.manual_seed(0)
    x = torch.randn(32, 4)
    prepared = prepare_static(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), [x])
    for tensor in tensors_of(prepared):
        with evaluating(prepared):
            assert torch.equal(tensor.round(x), tensor.quantizer(x.clone()))


def test_everything_is_as_before_after_evaluation_even_after_an_error():
    prepared = prepare_static(nn.Sequential(nn.Linear(4, 2), nn.Dropout()), [torch.randn(8, 4)])
    prepared.train()
    prepared.get_submodule("0").eval()
    state = state_of(prepared)
    state.fake_quant, state.observer, state.freeze_bn = False, True, False
    with evaluating(prepared):
        assert (state.fake_quant, state.observer, prepared.training) == (True, False, False)
        assert not torch.is_grad_enabled()
    with pytest.raises(RuntimeError, match="inside"), evaluating(prepared):
        raise RuntimeError("inside")
    assert (state.fake_quant, state.observer, state.freeze_bn) == (False, True, False)
    assert prepared.training
    assert not prepared.get_submodule("0").training


def test_models_without_ranges_are_refused():
    with pytest.raises(ValueError, match=r"me\(\) needs ranges, and no fake quantizer has one"):
        require_ranges(prepare(nn.Sequential(nn.Linear(4, 2))), "me()")
    with pytest.raises(ValueError, match="not prepared"):
        require_ranges(nn.Linear(4, 2), "me()")
