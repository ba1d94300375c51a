"""Rows to train on, from files or memory, for every kind of task."""

from deltahub.tuning.data.dataset import Dataset, class_weights, majority_share, split
from deltahub.tuning.data.reading import load, read

__all__ = ["Dataset", "class_weights", "load", "majority_share", "read", "split"]
