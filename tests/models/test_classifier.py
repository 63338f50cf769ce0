import pytest
import torch

from lq.models import Classifier
from lq.models.image_classifier import classification_loss

pytest.importorskip("torchvision")


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("resnet18", {}),
        ("resnet18", {"relax_strides": 2}),
        ("mobilenet_v2", {"relax_strides": 1, "model_args": {"width_mult": 0.25}, "channels_last": True}),
        ("shufflenet_v2_x0_5", {"relax_strides": 1}),
    ],
)
def test_takes_small_grey_images(model, options):
    module = Classifier(model, num_classes=10, in_channels=1, **options)
    assert module(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_googlenet_trains_with_its_auxiliary_heads():
    options = {"model_args": {"aux_logits": True, "init_weights": False}}
    module = Classifier("googlenet", num_classes=5, **options)
    output, labels = module(torch.randn(2, 3, 64, 64)), torch.tensor([0, 4])
    assert not isinstance(output, torch.Tensor)
    assert classification_loss(output, labels).equal(classification_loss(output.logits, labels))


def test_starts_from_a_checkpoint(tmp_path):
    arguments = {"model": "mobilenet_v2", "num_classes": 4, "model_args": {"width_mult": 0.25}}
    source = Classifier(**arguments)
    path = tmp_path / "float.ckpt"
    torch.save({"state_dict": source.state_dict()}, path)
    target = Classifier(**arguments, weights=str(path))
    for ours, theirs in zip(source.parameters(), target.parameters(), strict=True):
        assert ours.equal(theirs)


@pytest.mark.parametrize("name", ["runs/nothing.ckpt", "nothing.pt", "nothing.ckpt"])
def test_missing_file_is_not_mistaken_for_a_name(name):
    with pytest.raises(ValueError, match=r"does not exist; train it first"):
        Classifier("resnet18", num_classes=4, weights=name)


def test_unknown_name_of_weights_lists_the_known_ones():
    with pytest.raises(ValueError, match="neither a file nor weights of resnet18; write one of IMAGENET1K_V1"):
        Classifier("resnet18", num_classes=4, weights="IMAGENET1K_V9")
