"""One replica from question to answer, over a real hub in a folder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deltahub_serve.questions import Refused
from deltahub_serve.worker import Worker

from deltahub import Base, Delta, Hub, Mask, Predictor, base_task
from deltahub.rawtensor import RawTensor
from tests.serve.asking import TEXTS, ask, outcomes, plain, refused, warm
from tests.serve.conftest import KINDS, MakeWorker


@pytest.mark.parametrize("task", KINDS)
def test_a_task_answers_as_it_does_alone_in_the_same_batch(
    worker: Worker, serve_base: Base, serve_mask: Mask, hub: Hub, task: str
) -> None:
    reply = ask(worker, task)
    assert reply.rows == len(TEXTS), "so that the batch is the same"
    predictor = Predictor(serve_base, serve_mask)
    predictor.load(hub.pull(task))
    assert plain(reply) == [answer.as_dict() for answer in predictor.predict(TEXTS)]
    record = hub.version(task)
    assert (reply.reference, reply.digest, reply.kind) == (record.reference, record.digest, KINDS[task])
    assert reply.labels == record.manifest.labels
    assert reply.tokens == (3, 5, 7)


def test_pairs_and_words_are_taken(worker: Worker) -> None:
    assert len(ask(worker, "pairs", ("w1", "w2"), pairs=("w3", "w4")).answers) == 2
    words = ask(worker, "words", (("w1", "w2"),)).answers[0]
    assert [word.word for word in words.words] == ["w1", "w2"]  # type: ignore[union-attr]


def test_two_workers_of_one_hub_agree_to_the_bit(make_worker: MakeWorker) -> None:
    left, right = make_worker("left"), make_worker("right")
    for task in [*KINDS, "base"]:
        one, two = ask(left, task), ask(right, task)
        assert (plain(one), one.digest) == (plain(two), two.digest)
        assert (one.replica, two.replica) == ("left", "right")


def test_the_base_embeds_as_a_plain_forward_pass_does(worker: Worker, serve_base: Base) -> None:
    ask(worker, "topic")  # whose values must not be in the base's answers
    reply = ask(worker, "base")
    predictor = Predictor(serve_base)
    predictor.load(base_task(serve_base))
    assert plain(reply) == [{"embedding": row.tolist()} for row in predictor.embed(list(TEXTS))]
    assert (reply.reference, reply.version, reply.kind) == ("base", None, "embeddings")
    assert worker.state().resident == "base"


def test_a_version_whose_answers_are_no_numbers_never_takes_over(worker: Worker, hub: Hub) -> None:
    before = plain(ask(worker, "topic"))
    good = hub.pull("topic")
    head = {f"head.{name}": RawTensor.of_torch(torch.full_like(it, 3e38)) for name, it in good.head.items()}
    hub.push(Delta(good.manifest, {**good.tensors, **head}))
    assert asyncio.run(worker.refresh()) == {worker.replica: []}
    assert plain(ask(worker, "topic")) == before
    assert "NaN or infinity" in worker.state().trouble["topic"]
    assert refused(worker, "topic@3") == "unusable"


def test_a_name_a_number_and_a_tag(worker: Worker) -> None:
    names = ("topic", "topic@1", "topic:prod")
    assert [ask(worker, name).reference for name in names] == ["topic@2", "topic@1", "topic@1"]


@pytest.mark.parametrize(
    "name", ["", "..", "../../etc/passwd", "topic@", "topic@99", "topic@-1", "topic:nobody", "TOPIC", "a b", "x" * 9999]
)
def test_names_that_mean_nothing_are_unknown(worker: Worker, name: str) -> None:
    assert refused(worker, name) == "unknown"


def test_who_misspells_a_name_is_told_those_like_it(worker: Worker) -> None:
    with pytest.raises(Refused) as caught:
        ask(worker, "topik")
    assert caught.value.refusal.near == ("topic",)
    assert str(caught.value) == "there is no task topik; did you mean topic?"


def test_questions_that_cannot_be_answered_say_why(make_worker: MakeWorker) -> None:
    worker = make_worker(max_inputs=3)
    assert refused(worker, "topic", kinds=("embeddings",)) == "kind"
    assert refused(worker, "topic", ()) == "invalid"
    assert refused(worker, "topic", ("w1",) * 4) == "too_many"
    assert refused(worker, "topic", ("",) * 3, pairs=("",) * 3) == "invalid"
    assert refused(worker, "pairs", ("w1",)) == "invalid"
    assert refused(worker, "topic", ("\ud800",)) == "invalid"
    assert refused(worker, "topic", (("w1", "w2"),)) == "invalid"
    assert refused(worker, "topic", ("w1 " * 100,), truncate=False) == "too_long"
    assert len(ask(worker, "topic", ("w1 " * 100,)).answers) == 1
    assert worker.trouble() is None


def test_a_damaged_version_is_unusable_and_the_one_before_answers_for_the_plain_name(
    worker: Worker, hub: Hub, hub_folder: Path
) -> None:
    blob = hub.version("topic@2").sections[-1].data.blob
    path = next(hub_folder.rglob(blob))
    path.write_bytes(b"x" * path.stat().st_size)
    assert refused(worker, "topic@2") == "unusable"
    assert ask(worker, "topic").version == 1
    assert "topic@1 answers in its place" in worker.state().trouble["topic"]


def test_a_pass_that_fails_is_told_and_the_next_one_answers(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    model = warm(worker, "topic")
    forward = model.run
    monkeypatch.setattr(model, "run", lambda batch: 1 / 0)
    assert refused(worker, "topic") == "failed"
    monkeypatch.setattr(model, "run", forward)
    assert ask(worker, "topic").version == 2


def test_a_hub_that_is_gone_is_told_and_what_is_loaded_answers_on(worker: Worker, hub_folder: Path) -> None:
    ask(worker, "topic")
    hub_folder.rename(hub_folder.with_name("away"))
    with pytest.raises(Refused, match="hub cannot be read"):
        asyncio.run(worker.refresh())
    assert ask(worker, "topic").version == 2
    assert refused(worker, "words") == "unavailable"
    assert "there is no hub" in str(worker.state().hub)
    assert [card.name for card in asyncio.run(worker.cards())] == ["base", "topic"]
    hub_folder.with_name("away").rename(hub_folder)
    asyncio.run(worker.refresh())
    assert worker.state().hub is None
    assert ask(worker, "words").version == 1


def test_a_task_of_a_kind_that_has_no_answers_is_unusable(
    worker: Worker, hub: Hub, make_task: Callable[..., Delta]
) -> None:
    hub.push(make_task("picture", seed=4).with_manifest(kind="image-classification"))
    assert refused(worker, "picture") == "unusable"


def test_a_question_that_ends_in_a_mistake_of_ours_counts_as_failed(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_reply", None)
    with pytest.raises(TypeError):
        ask(worker, "topic")
    assert outcomes(worker) == {("topic", "failed"): 1.0}
