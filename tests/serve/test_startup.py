"""What a worker needs to start, what it says where that is missing, and what the start must not cost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from deltahub_serve.config import Config
from deltahub_serve.questions import Question, Refused
from deltahub_serve.worker import Worker

from deltahub import Base, Hub, Mask
from deltahub.errors import CheckpointError, DeltahubError, MismatchError, NotFoundError, UsageError
from tests.serve.conftest import MakeWorker
from tests.tuning.conftest import write_text_base


def opened(hub: Path, base: Path, **fields: Any) -> None:
    Worker(Config(**({"hub": str(hub), "base": str(base), "threads": 1, "device": "cpu"} | fields))).close()


def test_a_start_that_cannot_succeed_says_why(
    hub: Hub, hub_folder: Path, serve_base: Base, serve_mask: Mask, tmp_path: Path
) -> None:
    other = Mask.build(serve_base, 0.02)
    cases: list[tuple[type[DeltahubError], str, dict[str, Any]]] = [
        (NotFoundError, "no hub at", {"hub": tmp_path / "nowhere"}),
        (CheckpointError, "nowhere", {"base": tmp_path / "nowhere"}),
        (UsageError, "base_name", {"base_name": "topic"}),
        (UsageError, "device 'gpu9'", {"device": "gpu9"}),
        (NotFoundError, "no mask file", {"mask": "nowhere.mask"}),
        (NotFoundError, serve_mask.digest[:16], {"mask": "0" * 16}),
    ]
    for error, message, change in cases:
        with pytest.raises(error, match=message):
            opened(**({"hub": hub_folder, "base": serve_base.path} | change))
    hub.push_mask(other)
    with pytest.raises(UsageError, match="2 masks of base") as several:
        opened(hub_folder, serve_base.path)
    assert other.digest[:16] in str(several.value)
    opened(hub_folder, serve_base.path, mask=serve_mask.digest[:12])
    opened(hub_folder, serve_base.path, mask=str(other.save(tmp_path / "other.mask")))
    foreign = Mask.build(write_text_base(tmp_path / "foreign", "roberta"), 0.05)
    with pytest.raises(MismatchError, match="was made on base"):
        opened(hub_folder, serve_base.path, mask=str(foreign.save(tmp_path / "foreign.mask")))


def test_a_start_reads_no_record_of_any_task(
    make_worker: MakeWorker, hub_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a record was read")

    monkeypatch.setattr(Hub, "version", never)
    monkeypatch.setattr(Hub, "tasks", never)
    assert make_worker().state().loaded == {}


def test_a_hub_without_masks_gets_the_default_one(serve_base: Base, tmp_path: Path) -> None:
    hub = Hub.open(tmp_path / "empty")
    worker = Worker(Config(hub=hub.store.url, base=str(serve_base.path), base_name="base", device="cpu", threads=1))
    assert worker.state().mask == Mask.build(serve_base).digest
    assert asyncio.run(worker.ask(Question("base", ("w1",)))).kind == "embeddings"
    worker.close()


def test_tasks_are_served_even_where_the_base_says_that_it_embeds_otherwise(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    write_text_base(folder)
    (folder / "modules.json").write_text("[]")
    config = Config(
        hub=Hub.open(tmp_path / "hub").store.url, base=str(folder), base_name="base", device="cpu", threads=1
    )
    worker = Worker(config)
    with pytest.raises(Refused) as caught:
        asyncio.run(worker.ask(Question("base", ("w1",))))
    assert caught.value.refusal.reason == "unusable"
    assert "modules.json" in str(asyncio.run(worker.cards())[0].trouble)
    worker.close()
