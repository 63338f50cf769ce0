"""LightningModules that the recipes train: torchvision classifiers, EfficientNet-Lite0, a net for digits."""

from lq.models.classifier import Classifier
from lq.models.digits import DigitsClassifier
from lq.models.efficientnet_lite import EfficientNetLite0
from lq.models.image_classifier import ImageClassifier
from lq.models.optimizer import OptimizerConfig

__all__ = ["Classifier", "DigitsClassifier", "EfficientNetLite0", "ImageClassifier", "OptimizerConfig"]
