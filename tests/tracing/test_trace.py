from __future__ import annotations

import copy
import pickle
import re
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.core.state import STATE
from lq.tracing.errors import UntraceableError
from lq.tracing.trace import passed_parameters, trace, untraceable_parts


def assert_same_in_both_modes(model: nn.Module, *args: Tensor, **kwargs: Tensor) -> nn.Module:
    graph_module = trace(model, passed_parameters(model, args, kwargs))
    for training in (True, False):
        copies = copy.deepcopy(model).train(training), copy.deepcopy(graph_module).train(training)
        outputs = []
        for module in copies:
            torch.manual_seed(0)
            outputs.append(module(*args, **kwargs))
        assert type(outputs[0]) is type(outputs[1])
        torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=0)
    return graph_module


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x), 0.5, self.training) + F.dropout(x, p=0.2, training=self.training)


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand(x.shape[0], 1) > 0.5)


class Aux(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.head, self.aux, self.drop = nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 3), DropPath()
        self.kind = kind

    def forward(self, x: Tensor) -> object:
        x = self.drop(self.body(x))
        if self.training:
            outputs = self.head(x), self.aux(x)
            return {"out": outputs[0], "aux": outputs[1]} if self.kind == "dict" else outputs
        return {"out": self.head(x)} if self.kind == "dict" else self.head(x)


@pytest.mark.parametrize(
    "model",
    [FunctionalDropout(), nn.Sequential(nn.Linear(8, 8), DropPath(), nn.Dropout(0.3)), Aux("tuple"), Aux("dict")],
    ids=["functional dropout", "drop path", "auxiliary head", "auxiliary head in a dict"],
)
def test_both_modes_are_kept(model: nn.Module):
    assert_same_in_both_modes(model, torch.randn(6, 8))


def test_torchvisions_stochastic_depth_and_auxiliary_heads():
    torchvision = pytest.importorskip("torchvision")
    stochastic_depth = torchvision.ops.StochasticDepth(0.5, "row")
    assert_same_in_both_modes(nn.Sequential(nn.Linear(8, 8), stochastic_depth), torch.randn(6, 8))
    model = torchvision.models.googlenet(init_weights=False, num_classes=4)
    assert_same_in_both_modes(model, torch.randn(2, 3, 64, 64))


def test_inceptions_outputs():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.inception_v3(init_weights=False, num_classes=4)
    model.AuxLogits = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(768, 4))  # takes small images
    assert_same_in_both_modes(model, torch.randn(2, 3, 75, 75))


def test_timms_batch_norm_with_activation_is_split():
    timm = pytest.importorskip("timm")
    act = timm.layers.BatchNormAct2d(4)
    act.running_mean.add_(0.5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), act)
    graph_module = assert_same_in_both_modes(model, torch.randn(2, 3, 6, 6))
    kinds = [type(graph_module.get_submodule(n.target)) for n in graph_module.graph.nodes if n.op == "call_module"]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert type(model[1]) is type(act)
    assert graph_module.state_dict().keys() == model.state_dict().keys()


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        y = self.fc(x) * scale
        return y if mask is None else y * mask


def test_optional_parameters_keep_the_values_of_the_example():
    model, x = Optional(), torch.randn(2, 8)
    plain = assert_same_in_both_modes(model, x)
    assert_same_in_both_modes(model, x, mask=torch.rand(2, 8))
    with pytest.raises(ValueError, match="traced with mask=None, but this call passes mask as Tensor"):
        plain(x, torch.ones(8))
    with pytest.raises(ValueError, match=r"traced with scale=1\.0"):
        plain(x, None, 2.0)
    assert torch.equal(plain(x, None, 1.0), model(x))


class Ordered(nn.Module):
    """Returns an OrderedDict, as torchvision's segmentation models do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        y = self.fc(x)
        return OrderedDict([("out", torch.relu(y)), ("aux", y)])


def test_ordered_dicts_stay_ordered_dicts():
    x = torch.randn(2, 8)
    graph_module = assert_same_in_both_modes(Ordered(), x)
    pickled = [pickle.loads(pickle.dumps(g)) for g in (graph_module, copy.deepcopy(graph_module))]
    for copied in (graph_module, copy.deepcopy(graph_module), *pickled):
        output = copied(x)
        assert type(output) is OrderedDict
        assert list(output) == ["out", "aux"]


def test_an_example_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"do not fit Optional\.forward: got an unexpected keyword argument 'masc'"):
        passed_parameters(Optional(), (torch.zeros(1, 8),), {"masc": None})


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        if y.sum() > 0:  # this line is named
            return y
        return -y


class OtherInEvaluation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if self.training else torch.sigmoid(self.fc(x))


class OtherNumber(OtherInEvaluation):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * (2.0 if self.training else 3.0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            OtherInEvaluation(),
            "OtherInEvaluation cannot be traced: `.*sigmoid.*` is computed in evaluation but not in tr",
        ),
        (OtherNumber(), r"`mul` is passed 2\.0 in training and 3\.0 in evaluation"),
    ],
)
def test_models_without_one_graph_are_refused(model: nn.Module, message: str):
    with pytest.raises(UntraceableError, match=message):
        trace(model)


def test_untraceable_code_is_named_with_file_line_and_remedy():
    with pytest.raises(UntraceableError) as caught:
        trace(Branches())
    message = str(caught.value)
    assert f"Branches cannot be traced: {__file__}:" in message
    assert "`if y.sum() > 0:" in message
    assert "Move that branch into a module of its own" in message
    assert "QATCallback(target='backbone')" in message


# ---- what has no graph inside a module that has one --------------------------------------------------------------


class Deep(nn.Module):
    """Two layers that can be traced around one part that cannot."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.first, self.body, self.last = nn.Linear(8, 8), nn.Sequential(nn.ReLU(), part), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.first(x)))


class Reraises(nn.Module):
    """Its failure looks like another one from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Branches()

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.inner(x)
        except Exception as error:
            raise RuntimeError("something broke") from error


class LayerInTrainingBranch(nn.Module):
    """Branches on its mode and holds a layer, so it is neither a leaf nor one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        if self.training:
            x = x + torch.zeros(())
        return x


class OverwritesAView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        y.reshape(-1).mul_(2.0)
        return y + 1


@pytest.mark.parametrize(
    ("part", "path", "reason"),
    [
        (Branches(), "body.1", r"Branches cannot be traced: .*test_trace\.py:\d+, in forward: `if y\.sum\(\) > 0:"),
        (nn.Sequential(nn.Linear(8, 8), Branches()), "body.1.1", "Branches cannot be traced"),
        (Reraises(), "body.1", r"Reraises cannot be traced: .*something broke"),
        (OtherInEvaluation(), "body.1", "OtherInEvaluation cannot be traced: .*in evaluation but not in training"),
        (OtherNumber(), "body.1", r"OtherNumber cannot be traced: .*2\.0 in training and 3\.0"),
        (LayerInTrainingBranch(), "body.1", "LayerInTrainingBranch cannot be traced: `last` is passed"),
        (OverwritesAView(), "body.1", "OverwritesAView cannot be traced: .*overwrites a view"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_a_part_without_a_graph_stays_as_it_is(part: nn.Module, path: str, reason: str):
    model = Deep(copy.deepcopy(part))
    graph_module = assert_same_in_both_modes(model, torch.randn(6, 8))
    parts = untraceable_parts(graph_module)
    assert list(parts) == [path]
    assert re.search(reason, parts[path])
    assert graph_module.get_submodule(path) is model.get_submodule(path)
    assert graph_module.state_dict().keys() == model.state_dict().keys()


def test_both_branches_run_in_the_graph():
    graph_module, part = trace(model := Deep(Branches())), {}
    model.body[1].register_forward_hook(lambda module, args, output: part.update({bool(output.sum() > 0): True}))
    for sign in (1.0, -1.0):
        with torch.no_grad():
            model.body[1].fc.bias.fill_(sign * 100)
        x = torch.randn(6, 8)
        assert torch.equal(graph_module(x), model(x))


def test_several_parts_and_the_outermost_wins():
    class Chooses(Branches):
        """Fails itself once what it holds no longer does."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = Branches()

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return y if y.sum() > 0 else self.fc(y)

    graph_module = trace(nn.Sequential(Deep(Branches()), nn.Linear(3, 8), Chooses()))
    assert list(untraceable_parts(graph_module)) == ["0.body.1", "2"]


class WithConstants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.unused, self.bare = nn.Linear(8, 8), nn.Linear(2, 2), nn.ReLU()
        self.token = nn.Parameter(torch.randn(8))
        self.register_buffer("never_read", torch.ones(3))
        self.register_buffer("scratch", torch.ones(3), persistent=False)
        self.alias = self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * torch.tensor([0.5, 2.0]).repeat(4) + self.token


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool):
    model = WithConstants().train(training)
    model.unused.eval()
    model.fc.train(not training)
    before = {name: m.training for name, m in model.named_modules()}
    attributes = set(model.__dict__)
    graph_module = trace(model)
    assert {name: m.training for name, m in model.named_modules()} == before
    assert set(model.__dict__) == attributes
    assert graph_module.training is training
    assert graph_module.fc.training is not training


def test_the_state_dict_keeps_every_key_and_constants_stay_out_of_it():
    model = WithConstants()
    graph_module = assert_same_in_both_modes(model, torch.randn(2, 8))
    assert graph_module.state_dict().keys() == model.state_dict().keys()
    assert graph_module.fc.weight is model.fc.weight
    graph_module.load_state_dict(model.state_dict())


def test_the_name_of_the_state_is_reserved():
    model = nn.Sequential(nn.Linear(2, 2))
    model.qat_state = nn.Identity()
    with pytest.raises(ValueError, match=f"already has an attribute '{STATE}'; rename it"):
        trace(model)
