import pytest
import torch
from torch import nn

from lq.backends.prepare import prepare
from lq.models.weights import build_torchvision, load_weights, read_weights

pytest.importorskip("torchvision")


class Evil:
    def __reduce__(self):
        return print, ("code was run",)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}}])
def test_checkpoint_and_state_dict_give_the_same_weights(tmp_path, wrap):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    torch.save(wrap(source.state_dict()), tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert target.weight.equal(source.weight)


def test_other_tensors_of_a_module_are_left_out(tmp_path):
    torch.save({"state_dict": {"model.a": torch.ones(1), "metric.b": torch.ones(1)}}, tmp_path / "w.pt")
    assert list(read_weights(tmp_path / "w.pt")) == ["a"]


def test_whatever_else_a_module_keeps_in_its_state_does_not_matter(tmp_path):
    torch.save({"state_dict": {"model.a": torch.ones(1), "metric._extra_state": {"seen": 3}}}, tmp_path / "w.pt")
    assert list(read_weights(tmp_path / "w.pt")) == ["a"]


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_checkpoint_of_a_qat_run_is_refused_as_that(tmp_path, prefix):
    state = prepare(nn.Sequential(nn.Linear(3, 2))).state_dict()
    torch.save({"state_dict": {f"{prefix}{key}": value for key, value in state.items()}}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="is a checkpoint of a QAT run; give one of the float model"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, [1, 2], {"state_dict": {"model.a": 1}}, {"state_dict": [1]}, {1: 2}]
)
def test_files_without_a_state_dict_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_weights(tmp_path / "w.pt")


def test_foreign_and_dangerous_files_are_refused(tmp_path, capsys):
    (tmp_path / "text.pt").write_text("hello")
    torch.save(Evil(), tmp_path / "evil.pt")
    for name in ("text.pt", "evil.pt"):
        with pytest.raises(ValueError, match=r"is not a checkpoint that torch\.load can read"):
            read_weights(tmp_path / name)
    assert "code was run" not in capsys.readouterr().out


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"do not fit this Linear: size mismatch for weight"):
        load_weights(nn.Linear(4, 2), tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet118", 10, None, {}), "did you mean resnet18"),
        (("zzz", 10, None, {}), "see torchvision.models.list_models"),
        (("resnet18", 10, "IMAGENET", {}), "write one of IMAGENET1K_V1, DEFAULT"),
        (
            ("resnet18", 10, None, {"width_mult": 0.5}),
            r"model_args \{'width_mult': 0.5\} do not fit resnet18",
        ),
        (("deeplabv3_resnet50", 10, None, {}), "is not a torchvision classifier"),
    ],
)
def test_bad_requests(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_torchvision(*arguments)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_that_warn_about_their_default_are_built_silently(name):
    assert build_torchvision(name, 4, None, {"init_weights": False}).fc.out_features == 4
