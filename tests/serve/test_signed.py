"""A server that was told whose signature it needs serves nothing else, and says why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from deltahub_serve.arguments import plan
from deltahub_serve.library import Library
from deltahub_serve.questions import Question, Refused
from deltahub_serve.web import application
from deltahub_serve.worker import Worker

from deltahub import Base, Delta, Hub, Mask, Resident, SigningKey, TaskModel
from deltahub.errors import SignatureError, UsageError
from deltahub.heads import load_tokenizer
from tests.serve.conftest import Clock, MakeWorker
from tests.serve.web.calls import call, post

MINE, OTHER = SigningKey.generate(), SigningKey.generate()
TEXT = "w1 w2 w39"


@pytest.fixture
def library(serve_base: Base, serve_mask: Mask, tmp_path: Path):
    """Of an empty hub, which wants a signature by MINE."""
    resident, tokenizer = Resident.load(serve_base, serve_mask), load_tokenizer(serve_base)
    hub = Hub.open(tmp_path / "hub").requiring([MINE.verify_key])
    made = Library(hub, lambda delta: TaskModel(resident, tokenizer, delta), clock=Clock())
    yield made
    made.close()


def version(library: Library, name: str) -> int | None:
    return library.get(name).result(60).version


def test_an_unsigned_version_never_displaces_a_signed_one(library: Library, make_task: Callable[..., Delta]) -> None:
    hub = library.watch.hub
    hub.push(make_task("topic", seed=1), ("prod",), sign=MINE)
    assert (version(library, "topic"), version(library, "topic:prod")) == (1, 1)
    hub.push(make_task("topic", seed=2), ("prod",), sign=OTHER)
    assert library.refresh() == []
    assert (version(library, "topic"), version(library, "topic:prod")) == (1, 1)
    assert "topic@2 is not signed as wanted" in library.trouble["topic"]
    with pytest.raises(SignatureError, match=f"found one by {OTHER.verify_key.id}"):
        version(library, "topic@2")
    hub_folder = Hub.open(hub.store.url)
    hub_folder.sign("topic@2", MINE)
    assert sorted(library.refresh(["topic"])) == ["topic", "topic:prod"]
    assert (version(library, "topic@2"), library.trouble) == (2, {})


def test_at_the_start_the_newest_signed_version_answers(library: Library, make_task: Callable[..., Delta]) -> None:
    hub = library.watch.hub
    hub.push(make_task("topic", seed=1), sign=MINE)
    hub.push(make_task("topic", seed=2))
    assert version(library, "topic") == 1
    assert "topic@1 answers in its place" in library.trouble["topic"]


def test_over_http_it_is_unusable_with_its_reason(make_worker: MakeWorker, hub_folder: Path) -> None:
    Hub.open(hub_folder).sign("topic@1", MINE)
    worker: Worker = make_worker(require_signature=(MINE.verify_key.text,))
    served = application(worker, worker.config)
    answered = post(served, "/tasks/topic/predict", {"inputs": TEXT})
    assert (answered.status_code, answered.headers["x-task-version"]) == (200, "1")
    for task in ("topic@2", "score", "labels:prod"):
        refused = post(served, f"/tasks/{task}/predict", {"inputs": TEXT})
        assert refused.status_code == 424
        error = refused.json()["error"]
        assert error["reason"] == "unusable"
        assert f"is not signed as wanted: expected a signature by {MINE.verify_key.id}, found none" in error["message"]
    assert post(served, "/v1/classify", {"model": "topic@2", "input": TEXT}).status_code == 424
    with pytest.raises(Refused, match="not signed"):
        asyncio.run(worker.ask(Question("score", (TEXT,))))
    listed = {card["id"]: card for card in call(served, "GET", "/v1/models").json()["data"]}
    assert "not signed" in str(listed["score"])


def test_keys_come_from_texts_and_files(tmp_path: Path) -> None:
    path = tmp_path / "signers.pub"
    path.write_text(f"# us\n{MINE.verify_key.line} me\n{OTHER.verify_key.line}\n")
    told = {"hub": "h", "base": "b"}
    both = (MINE.verify_key.text, OTHER.verify_key.text)
    assert plan(told, {}).config.require_signature == ()
    for given in (str(path), [str(path)], list(both), f"{both[0]}, {both[1]}"):
        planned = plan(told | {"require_signature": given}, {})
        assert planned.config.require_signature == both
        assert plan(planned.arguments(), {}) == planned
    for wrong in ("", " , ", "nowhere", ["nowhere"], ["ed25519:AAAA"], str(tmp_path), [""]):
        with pytest.raises(UsageError):
            plan(told | {"require_signature": wrong}, {})
