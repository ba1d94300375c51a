from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.errors import DataError, MismatchError, UsageError
from deltahub.heads import task_model
from deltahub.mask import Mask
from deltahub.resident import Resident
from deltahub.tuning.choice import mask_for
from deltahub.tuning.data import Dataset, majority_share
from deltahub.tuning.masks import gradient_mask, lift_mask
from deltahub.tuning.methods import METHODS
from deltahub.tuning.settings import Settings
from deltahub.tuning.train import Trained, train
from tests.models import bits
from tests.tuning.conftest import CREATED, FAST, write_text_base


def test_a_task_is_learned(trained: Trained, validation: Dataset) -> None:
    assert trained.metrics["validation_accuracy"] > majority_share(validation) + 0.2


def test_the_manifest_says_all(trained: Trained, text_base: Base, mask: Mask) -> None:
    manifest = trained.delta.manifest
    assert (manifest.task, manifest.kind, manifest.labels) == ("words", "text-classification", ("high", "low"))
    assert (manifest.base, manifest.mask) == (text_base.ref, mask.ref)
    assert (manifest.architecture, manifest.backbone_prefix) == ("BertForSequenceClassification", "bert.")
    assert manifest.method["name"] == "pafi"
    assert manifest.method["lr"] == FAST.lr
    assert manifest.inputs == {"max_length": 16}
    assert (manifest.created, manifest.licence) == (CREATED, None)
    assert manifest.metrics == trained.metrics
    assert manifest.metrics["train_rows"] == 48
    assert manifest.metrics["validation_rows"] == 24
    assert set(trained.delta.head) == {"classifier.weight", "classifier.bias"}


def test_the_delta_survives_its_file(trained: Trained, tmp_path: Path) -> None:
    assert Delta.load(trained.delta.save(tmp_path / "words.delta")).digest == trained.delta.digest


def test_the_best_epoch_is_kept_and_of_equals_the_first(trained: Trained) -> None:
    scores = [entry["accuracy"] for entry in trained.history]
    assert len(scores) == FAST.epochs
    assert trained.metrics["validation_accuracy"] == max(scores)
    assert trained.metrics["best_epoch"] == 1 + scores.index(max(scores))


def test_a_seed_gives_the_same_bits(
    trained: Trained, text_base: Base, rows: Dataset, validation: Dataset, mask: Mask
) -> None:
    again = train(text_base, rows, validation, task="words", mask=mask, settings=FAST, created=CREATED)
    assert again.delta.digest == trained.delta.digest
    other = replace(FAST, seed=4)
    third = train(text_base, rows, validation, task="words", mask=mask, settings=other, created=CREATED)
    assert third.delta.tensors != trained.delta.tensors


def test_a_loss_that_is_no_number_stops_the_training(
    text_base: Base, rows: Dataset, validation: Dataset, mask: Mask
) -> None:
    wild = Settings(epochs=1, lr=1e30, head_lr=1e30, warmup=0, max_length=16)
    with pytest.raises(
        DataError, match=r"diverged in step \d+: expected a finite loss and outputs, found (nan|inf); lower"
    ):
        train(text_base, rows, validation, task="words", mask=mask, settings=wild)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_changes_what_it_may_and_swaps_in(
    text_base: Base, rows: Dataset, validation: Dataset, method: str
) -> None:
    one = Settings(epochs=1, max_length=16)
    own = {"gradient": lambda: gradient_mask(text_base, rows.texts[:20]), "lift": lambda: lift_mask(text_base)}
    mask = own[method]() if method in own else mask_for(method, text_base, None)
    delta = train(text_base, rows, validation, task="words", method=method, mask=mask, settings=one).delta
    how = METHODS[method]
    assert (delta.values is not None) == (how.mask is not None)
    assert bool(delta.dense) == (how.whole is not None or how.hiwi == "bias")
    assert bool(delta.adapter) == (how.hiwi == "weight")
    assert method == "full" or all(tensor.ndim == 1 for tensor in delta.dense.values())
    assert delta.manifest.method["name"] == method
    resident = Resident.load(text_base, mask)
    before = bits(resident.module)
    resident.swap(delta)
    changed = {name for name, tensor in bits(resident.module).items() if not torch.equal(tensor, before[name])}
    assert bool(changed) == (method != "head")


def test_a_half_precision_base_gives_a_half_precision_delta(
    text_base_bf16: Base, rows: Dataset, validation: Dataset
) -> None:
    delta = train(text_base_bf16, rows, validation, task="words", mask=Mask.build(text_base_bf16, 0.1),
                  settings=FAST).delta  # fmt: skip
    assert {tensor.dtype for tensor in delta.tensors.values()} == {"BF16"}
    assert delta.manifest.metrics["validation_accuracy"] > majority_share(validation) + 0.2


def test_a_base_whose_task_class_has_no_pooler_trains(rows: Dataset, validation: Dataset, tmp_path: Path) -> None:
    base = write_text_base(tmp_path, "roberta")
    delta = train(base, rows, validation, task="words", settings=Settings(epochs=1, max_length=16)).delta
    assert delta.manifest.backbone_prefix == "roberta."
    assert "classifier.dense.weight" in delta.head


def test_one_line_an_epoch_and_nothing_else_is_said(
    text_base: Base, rows: Dataset, validation: Dataset, mask: Mask, capfd: pytest.CaptureFixture[str]
) -> None:
    train(text_base, rows, validation, task="words", mask=mask, settings=FAST)
    out, err = capfd.readouterr()
    assert out == ""
    start, first, second, third, end = err.splitlines()
    assert start.startswith("words: pafi on ")
    assert "48 rows to train on, 24 to choose by; always guessing the largest class scores 0." in start
    for number, line in enumerate((first, second, third), start=1):
        assert line.startswith(f"epoch {number}/3  loss ")
    assert "validation accuracy" in first
    assert "examples/s" in first
    assert end.startswith("words: kept epoch ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs: expected a whole number, 1 or more, found 0"),
        ({"lr": math.nan}, "lr: expected 0 or more, found nan"),
        ({"lr": -1.0}, "lr: expected 0 or more"),
        ({"warmup": 1.0}, "warmup: expected 0 up to 1"),
        ({"seed": -1}, "seed: expected 0 to"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings(**arguments)


def test_arguments_that_do_not_fit_are_refused(
    text_base: Base, text_base_bf16: Base, rows: Dataset, validation: Dataset, mask: Mask
) -> None:
    with pytest.raises(UsageError, match="method 'lora': expected one of pafi, random"):
        train(text_base, rows, validation, task="words", method="lora")
    with pytest.raises(UsageError, match="method 'head' trains no values"):
        train(text_base, rows, validation, task="words", method="head", mask=mask)
    with pytest.raises(UsageError, match="expected recipe random, found smallest-magnitude"):
        train(text_base, rows, validation, task="words", method="random", mask=mask)
    with pytest.raises(MismatchError, match="mask was made on base"):
        train(text_base_bf16, rows, validation, task="words", mask=mask)
    with pytest.raises(UsageError, match=r"max_length: expected at most 32, which is all that .* takes, found 33"):
        train(text_base, rows, validation, task="words", mask=mask, settings=Settings(max_length=33))
    with pytest.raises(UsageError, match="max_length: expected at least 3, or no word is left, found 2"):
        train(text_base, rows, validation, task="words", mask=mask, settings=Settings(max_length=2))
    other = Dataset("text-classification", ("x",), None, ("other",), ("high", "other"))
    with pytest.raises(UsageError, match="classes of the validation set"):
        train(text_base, rows, other, task="words", mask=mask)
    with pytest.raises(UsageError, match="task name"):
        train(text_base, rows, validation, task="Words!", mask=mask)


def test_a_delta_of_a_training_fits_a_task_model_bound_whole(trained: Trained, text_base: Base, mask: Mask) -> None:
    """Head and values of one delta give the trained model back, wherever the backbone is bound."""
    resident = Resident.load(text_base, mask)
    model = task_model(resident.module, resident.module.config, "text-classification", ("high", "low"))
    whole = Resident(model, text_base, mask)
    whole.swap(trained.delta)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.delta.head.items())
    assert whole.values() == trained.delta.tensors["values"]
