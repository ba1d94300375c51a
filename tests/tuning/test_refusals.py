"""What cannot end well is refused before anything is trained."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deltahub.checkpoint import Base
from deltahub.errors import DeltahubError, MismatchError, UsageError
from deltahub.tuning import attach
from deltahub.tuning.settings import Settings
from deltahub.tuning.train import train
from tests.models import load_classifier
from tests.tuning.conftest import similarity_task, token_task, word_task, write_text_base, write_tokenizer

MakeBase = Callable[..., Base]
ROWS, VALIDATION = word_task(24, 1), word_task(8, 2)


def silent(_: str) -> None:
    pass


def refused(base: Base, message: str, **options: object) -> None:
    with pytest.raises(DeltahubError, match=message):
        train(base, ROWS, VALIDATION, task="t", say=silent, **options)  # type: ignore[arg-type]


def test_a_config_of_more_layers_than_the_weights(tmp_path: Path) -> None:
    write_text_base(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    refused(Base.open(tmp_path), "lacks 16 tensors of the layers that its config names")


def test_a_tokenizer_with_more_tokens_than_the_base(tmp_path: Path) -> None:
    base = write_text_base(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary |= {word: number + 1000 for word, number in vocabulary.items() if word.startswith("w")}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    refused(base, "the tokenizer does not fit the base: expected token numbers below 96")


def test_kinds_that_a_base_has_no_model_for(folder_of: Callable[..., Path], tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(folder_of("t5"), tmp_path / "t5")
    write_tokenizer(folder)
    base = Base.open(folder, cache=tmp_path)
    for rows in (token_task(24, 1), similarity_task(24, 1)):
        with pytest.raises(MismatchError, match=r"lacks|gives no vectors"):
            train(base, rows, rows, task="t", say=silent, settings=Settings(max_length=16))


def test_a_batch_of_one_has_nothing_to_contrast(text_base: Base) -> None:
    rows = similarity_task(8, 1)
    with pytest.raises(UsageError, match="expected 2 rows or more"):
        train(text_base, rows, rows, task="t", say=silent, settings=Settings(batch_size=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 1e300}, "lr: expected 0 or more"), ({"lr": 10**400}, "lr: expected 0 or more"),
        ({"batch_size": 10**20}, "batch_size: expected a whole number"), ({"checkpointing": "no"}, "true or false"),
        ({"head": "big"}, "head: expected one of native, linear, shared"), ({"layers": "x"}, "a list of globs"),
    ],
)  # fmt: skip
def test_settings_that_no_computer_can_follow(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings(**settings)  # type: ignore[arg-type]


def test_a_device_without_memory(text_base: Base) -> None:
    refused(text_base, "device 'meta'", device="meta")


def test_a_copy_of_an_attached_model(base_of: MakeBase, folder_of: Callable[..., Path]) -> None:
    model = attach(load_classifier(folder_of("bert")), base_of("bert"), method="bitfit")
    with pytest.raises(UsageError, match="cannot be copied; keep its state_dict"):
        copy.deepcopy(model)
    assert all(tensor.dtype == torch.float32 for tensor in model.state_dict().values())


def test_texts_are_cut_to_what_a_small_base_takes_unless_more_is_asked_for(text_base: Base) -> None:
    short = Settings(epochs=1)
    delta = train(text_base, ROWS, VALIDATION, task="t", method="head", settings=short, say=silent).delta
    assert delta.manifest.inputs["max_length"] == 32
    refused(text_base, "max_length: expected at most 32", settings=Settings(max_length=33))
