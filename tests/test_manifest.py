from __future__ import annotations

import pytest

from deltahub.manifest import BaseRef, Manifest

TRAINED = {"best_epoch": 2, "train_rows": 72, "validation_accuracy": 0.8, "validation_rows": 20}


@pytest.mark.parametrize(
    ("metrics", "chosen"),
    [
        ({}, []),
        (TRAINED, ["validation_accuracy", "best_epoch"]),
        (TRAINED | {"validation_macro_f1": 0.7}, ["validation_accuracy", "validation_macro_f1"]),
        (TRAINED | {"test_rows": 9, "test_accuracy": 0.9}, ["test_accuracy", "validation_accuracy"]),
        ({"glue": 0.5, "train_rows": 3}, ["glue", "train_rows"]),
    ],
)
def test_the_headline_says_how_good_a_task_is_before_how_it_was_trained(metrics, chosen):
    manifest = Manifest("sst2", "text-classification", BaseRef("base", None, "0" * 64), None, metrics=metrics)
    assert list(manifest.headline) == chosen
    assert all(manifest.headline[name] == metrics[name] for name in chosen)
