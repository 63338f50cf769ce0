"""LightningModules that the recipes train: any torchvision classifier, and a small net for 8x8 digits."""

from lq.models.classifier import Classifier
from lq.models.digits import DigitsClassifier
from lq.models.image_classifier import ImageClassifier
from lq.models.optimizer import OptimizerConfig

__all__ = ["Classifier", "DigitsClassifier", "ImageClassifier", "OptimizerConfig"]
