import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lq.models import ImageClassifier, OptimizerConfig


def make(**arguments):
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return ImageClassifier(net, num_classes=3, **arguments)


@pytest.fixture
def loader():
    labels = torch.arange(24) % 3
    images = torch.randn(24, 2, 6, 6) + labels.view(-1, 1, 1, 1).float()
    return DataLoader(TensorDataset(images, labels), batch_size=8)


def trainer(tmp_path, epochs):
    return L.Trainer(
        max_epochs=epochs,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("schedule", ["constant", "onecycle"])
def test_learns_and_logs(tmp_path, loader, channels_last, schedule):
    module = make(channels_last=channels_last, optimizer=OptimizerConfig(lr=0.05, schedule=schedule))
    run = trainer(tmp_path, epochs=10)
    run.fit(module, loader, loader)
    assert {"train/loss", "val/loss", "val/accuracy"} <= set(run.callback_metrics)
    assert run.callback_metrics["val/accuracy"] > 0.9
    (results,) = run.test(module, loader, verbose=False)
    assert results["test/accuracy"] == pytest.approx(float(run.callback_metrics["test/accuracy"]))
    assert set(results) == {"test/loss", "test/accuracy"}


def test_prediction_is_the_largest_logit(loader):
    module = make().eval()
    batch = next(iter(loader))
    assert module.predict_step(batch, 0).equal(module(batch[0]).argmax(1))


def test_channels_last_reaches_the_network():
    seen = []
    module = make(channels_last=True)
    module.model[1].register_forward_hook(lambda _, args, __: seen.append(args[0]))
    module(torch.zeros(2, 2, 6, 6))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\)"),
        ({"label_smoothing": -0.1}, "got -0.1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@pytest.mark.parametrize("value", [1, True, 2.0, None])
def test_bad_number_of_classes(value):
    with pytest.raises((TypeError, ValueError), match=r"num_classes=.* write e\.g\. num_classes=10"):
        ImageClassifier(nn.Identity(), num_classes=value)
