from __future__ import annotations

import math
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.errors import DataError, MismatchError, StoreError, UsageError
from deltahub.heads import task_model
from deltahub.mask import Mask
from deltahub.resident import Resident
from deltahub.tuning.choice import mask_for
from deltahub.tuning.data import Dataset, majority_share
from deltahub.tuning.masks import gradient_mask, lift_mask
from deltahub.tuning.methods import METHODS
from deltahub.tuning.settings import Settings
from deltahub.tuning.state import last_checkpoint, open_state
from deltahub.tuning.train import Trained, train
from tests.models import bits
from tests.tuning.conftest import write_text_base

FAST = Settings(epochs=3, lr=3e-2, head_lr=1e-1, batch_size=8, max_length=16, seed=2)
CREATED = "2026-01-02T03:04:05Z"


class Interrupted:
    """Listens to a run and presses Ctrl-C when a line starts with ``at``."""

    def __init__(self, at: str = "never") -> None:
        self.at = at
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        if line.startswith(self.at):
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def mask(text_base: Base) -> Mask:
    return Mask.build(text_base, density=0.1)


@pytest.fixture(scope="module")
def trained(text_base: Base, rows: Dataset, validation: Dataset, mask: Mask) -> Trained:
    return train(text_base, rows, validation, task="words", mask=mask, settings=FAST, created=CREATED)


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
    assert manifest.metrics["train_rows"] == 160
    assert manifest.metrics["validation_rows"] == 40
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
    other = replace(FAST, seed=3)
    third = train(text_base, rows, validation, task="words", mask=mask, settings=other, created=CREATED)
    assert third.delta.tensors != trained.delta.tensors


def test_a_resumed_run_ends_as_one_without_a_break(
    trained: Trained, text_base: Base, rows: Dataset, validation: Dataset, mask: Mask, tmp_path: Path
) -> None:
    stop = Interrupted(at="epoch 2")
    with pytest.raises(KeyboardInterrupt):
        train(text_base, rows, validation, task="words", mask=mask, settings=FAST, state=tmp_path, say=stop)
    assert stop.lines[-1].endswith(f"was interrupted; what was done is kept in {tmp_path}: resume from there")
    with pytest.raises(UsageError, match="holds an earlier run; resume it"):
        train(text_base, rows, validation, task="words", mask=mask, settings=FAST, state=tmp_path)
    listen = Interrupted()
    resumed = train(
        text_base, rows, validation, task="words", mask=mask, settings=FAST, state=tmp_path, resume=True,
        created=CREATED, say=listen,
    )  # fmt: skip
    assert [line[:9] for line in listen.lines if line.startswith("epoch")] == ["epoch 2/3", "epoch 3/3"]
    assert resumed.delta.digest == trained.delta.digest
    finished = train(
        text_base, rows, validation, task="words", mask=mask, settings=FAST, state=tmp_path, resume=True,
        created=CREATED,
    )  # fmt: skip
    assert finished.delta.digest == trained.delta.digest
    assert finished.history == []


def test_a_run_is_resumed_only_as_it_was_started(
    text_base: Base, rows: Dataset, validation: Dataset, mask: Mask, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(text_base, rows, validation, task="words", mask=mask, settings=FAST, state=tmp_path,
              say=Interrupted(at="epoch 1"))  # fmt: skip
    other = replace(FAST, epochs=4)
    with pytest.raises(MismatchError, match="has another epochs: expected 3, found 4"):
        train(text_base, rows, validation, task="words", mask=mask, settings=other, state=tmp_path, resume=True)
    with pytest.raises(MismatchError, match="has another data"):
        train(text_base, rows.take(range(150)), validation, task="words", mask=mask, settings=FAST, state=tmp_path,
              resume=True)  # fmt: skip


@pytest.fixture(scope="module")
def state(
    text_base: Base, rows: Dataset, validation: Dataset, mask: Mask, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The state folder of a finished run, of whose three epochs the best and the last are kept."""
    folder = tmp_path_factory.mktemp("state")
    train(text_base, rows, validation, task="words", mask=mask, settings=FAST, state=folder)
    return folder


def checkpoints(state: Path) -> list[Path]:
    return sorted(state.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


@pytest.mark.parametrize("content", [b"", b"garbage", None])
@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
             "sha256.json"],
)  # fmt: skip
def test_a_damaged_checkpoint_is_passed_over(state: Path, tmp_path: Path, file: str, content: bytes | None) -> None:
    folder = shutil.copytree(state, tmp_path / "state")
    best, last = checkpoints(folder)
    assert last_checkpoint(folder) == last
    for damaged, wanted in ((last, best), (best, None)):
        (damaged / file).write_bytes(content) if content is not None else (damaged / file).unlink()
        assert last_checkpoint(folder) == wanted


def test_a_run_whose_best_epoch_is_damaged_starts_anew_and_ends_the_same(
    trained: Trained, text_base: Base, rows: Dataset, validation: Dataset, mask: Mask, state: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(state, tmp_path / "state")
    (checkpoints(folder)[0] / "model.safetensors").write_bytes(b"")
    foreign = folder / "checkpoint-9-backup"
    foreign.mkdir()
    resumed = train(
        text_base, rows, validation, task="words", mask=mask, settings=FAST, state=folder, resume=True, created=CREATED
    )
    assert resumed.delta.digest == trained.delta.digest
    assert len(resumed.history) == FAST.epochs
    assert foreign.exists()


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_of_something_else_is_left_alone(
    text_base: Base, rows: Dataset, validation: Dataset, tmp_path: Path, resume: bool
) -> None:
    (tmp_path / "checkpoint-500").mkdir()
    with pytest.raises(UsageError, match="is not empty and holds no run; give a new or empty folder"):
        train(text_base, rows, validation, task="words", method="head", state=tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-500"]


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_note_of_the_run_is_refused(tmp_path: Path, note: bytes) -> None:
    (tmp_path / "run.json").write_bytes(note)
    with pytest.raises(DataError, match=r"run\.json is damaged: expected the settings of a run; give another folder"):
        open_state(tmp_path, {}, resume=True)


@pytest.mark.parametrize("room", [8_000, 20_000])
def test_a_full_disk_is_one_line_that_names_the_folder(
    text_base: Base, rows: Dataset, validation: Dataset, mask: Mask, tmp_path: Path, room: int
) -> None:
    """No file may grow beyond ``room`` bytes: first the masters do not fit, then the optimizer's state."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(StoreError) as error:
            train(text_base, rows, validation, task="words", mask=mask, settings=FAST, state=tmp_path,
                  say=lambda line: None)  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(error.value).startswith(f"cannot write a checkpoint into {tmp_path} (")
    assert "\n" not in str(error.value)
    assert last_checkpoint(tmp_path) is None


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
    assert "160 rows to train on, 40 to choose by; always guessing the largest class scores 0." in start
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
