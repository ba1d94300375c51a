"""A user's own script: the transformers Trainer, and a plain torch loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments

import deltahub as dh
from deltahub.encoding import pad
from deltahub.heads import load_tokenizer
from deltahub.predict import Predictor
from deltahub.tuning.batches import Collator, examples
from tests.models import bits
from tests.tuning.conftest import task_of, word_task


def trainer_of(delta_model: dh.tuning.DeltaModel, base: dh.Base, folder: Path, **more: Any) -> Trainer:
    tokenizer = load_tokenizer(base)
    return Trainer(
        model=delta_model,
        args=TrainingArguments(
            output_dir=str(folder), num_train_epochs=2, per_device_train_batch_size=8, learning_rate=2e-2,
            weight_decay=0.1, logging_steps=5, save_strategy="steps", save_steps=7, eval_strategy="epoch", seed=3,
            use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True, report_to=[],
        ),
        train_dataset=examples(tokenizer, word_task(40, 1), 16),
        eval_dataset=examples(tokenizer, word_task(40, 2), 16),
        data_collator=Collator(tokenizer),
        compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(-1) == found.label_ids).mean()},
        **more,
    )  # fmt: skip


def masters(delta_model: dh.tuning.DeltaModel) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in delta_model.state_dict().items()}


@pytest.fixture(scope="module")
def finished(
    text_base: dh.Base, mask: dh.Mask, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trainer, dh.tuning.DeltaModel, Path]:
    folder = tmp_path_factory.mktemp("trainer")
    delta_model = task_of(text_base, mask)
    before = bits(delta_model.model)
    trainer = trainer_of(delta_model, text_base, folder)
    trainer.train()
    trainer.before = before
    return trainer, delta_model, folder


def test_the_transformers_trainer_trains_an_attached_model(
    finished: tuple[Trainer, dh.tuning.DeltaModel, Path], text_base: dh.Base, mask: dh.Mask, tmp_path: Path
) -> None:
    trainer, delta_model, _ = finished
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    found = trainer.evaluate()
    delta = delta_model.export(tmp_path / "words.delta", inputs={"max_length": 16})
    assert (delta.task, delta.manifest.labels) == ("words", ("high", "low"))
    predictor = Predictor(text_base, mask)
    predictor.load(dh.Delta.load(tmp_path / "words.delta"))
    validation = word_task(40, 2)
    answers = predictor.classify([str(text) for text in validation.texts])
    right = [answer.label == label for answer, label in zip(answers, validation.labels, strict=True)]
    assert found["eval_accuracy"] == pytest.approx(sum(right) / len(right))


def test_weight_decay_reaches_only_what_is_trained(finished: tuple[Trainer, dh.tuning.DeltaModel, Path]) -> None:
    trainer, delta_model, _ = finished
    delta_model.write()
    segment = delta_model.resident.segments[0]
    hit = torch.zeros_like(segment.flat, dtype=torch.bool)
    hit[segment.index] = True
    after = bits(delta_model.model)
    for place in delta_model.resident.binding.placements:
        start = place.tensor.storage_offset()
        outside = ~hit[start : start + place.tensor.numel()].view(place.tensor.shape)
        assert torch.equal(after[place.name][outside], trainer.before[place.name][outside])


def test_a_checkpoint_holds_only_what_is_trained(finished: tuple[Trainer, dh.tuning.DeltaModel, Path]) -> None:
    _, delta_model, folder = finished
    saved = load_file(folder / "checkpoint-7" / "model.safetensors")
    assert saved.keys() == delta_model.state_dict().keys()
    assert sum(tensor.numel() for tensor in saved.values()) == delta_model.trained_parameters
    whole = sum(parameter.numel() for parameter in delta_model.model.parameters())
    assert delta_model.trained_parameters < 0.12 * whole


def test_a_checkpoint_resumed_in_a_new_script_ends_with_the_same_bits(
    finished: tuple[Trainer, dh.tuning.DeltaModel, Path], text_base: dh.Base, mask: dh.Mask, tmp_path: Path
) -> None:
    """In the middle of an epoch, with dropout, warm moments and a schedule half gone."""
    _, unbroken, folder = finished
    delta_model = task_of(text_base, mask)
    trainer_of(delta_model, text_base, tmp_path).train(resume_from_checkpoint=str(folder / "checkpoint-7"))
    for name, tensor in masters(unbroken).items():
        assert torch.equal(tensor, delta_model.state_dict()[name]), name


def test_the_best_epoch_can_be_loaded_at_the_end(text_base: dh.Base, mask: dh.Mask, tmp_path: Path) -> None:
    class Spoil(TrainerCallback):  # type: ignore[misc]
        """Makes the last epoch the worst one."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == state.max_steps:
                for parameter in delta_model.parameters():
                    parameter.data.zero_()

    delta_model = task_of(text_base, mask)
    trainer = trainer_of(delta_model, text_base, tmp_path, callbacks=[Spoil()])
    trainer.args.load_best_model_at_end = True
    trainer.args.metric_for_best_model = "eval_accuracy"
    trainer.args.greater_is_better = True
    trainer.args.save_strategy = trainer.args.eval_strategy
    trainer.train()
    best = load_file(Path(trainer.state.best_model_checkpoint) / "model.safetensors")
    assert trainer.state.best_global_step == 5
    assert all(torch.equal(best[name], tensor) for name, tensor in delta_model.state_dict().items())


def test_a_plain_loop_under_autocast(text_base: dh.Base, mask: dh.Mask) -> None:
    delta_model = task_of(text_base, mask).eval()
    rows = word_task(32, 1)
    tokenizer = load_tokenizer(text_base)
    batch: dict[str, Any] = Collator(tokenizer)(examples(tokenizer, rows, 16))
    optimizer = torch.optim.AdamW(delta_model.groups(lr=1e-2, head_lr=1e-2))
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            loss = delta_model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    delta = delta_model.export(task="words")
    assert all(tensor.dtype == "F32" for tensor in delta.tensors.values())
    inputs = pad(tokenizer, [{"input_ids": [1, 4, 5, 2], "attention_mask": [1, 1, 1, 1]}])
    delta_model.detach()
    with torch.inference_mode():
        assert delta_model.model(**inputs).logits.isfinite().all()
