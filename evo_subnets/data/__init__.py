"""Labelled pictures, decoded once, and the batches that networks are trained and measured on."""

from evo_subnets.data.augmentation import Augmentation, Images, batches
from evo_subnets.data.datasets import NAMES, Dataset, load

__all__ = ["NAMES", "Augmentation", "Dataset", "Images", "batches", "load"]
