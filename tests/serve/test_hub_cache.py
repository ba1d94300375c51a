"""Replicas of one machine fetch what a remote hub has once."""

from __future__ import annotations

from pathlib import Path

import pytest
from deltahub_serve.arguments import plan
from deltahub_serve.config import Config
from deltahub_serve.startup import open_parts

from deltahub import Hub
from deltahub.checkpoint import Base
from deltahub.stores import LocalStore


def test_two_replicas_read_through_one_folder(
    serve_base: Base, hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Hub.open(hub_folder).tasks()[0].task
    monkeypatch.setattr(LocalStore, "remote", True)
    for _ in range(2):
        config = Config(
            hub=str(hub_folder), base=str(serve_base.path), base_name="base", device="cpu", threads=1,
            hub_cache=str(tmp_path / "cache"),
        )  # fmt: skip
        parts = open_parts(config)
        parts.hub.pull(task)
        monkeypatch.setattr(LocalStore, "get", _without_blobs(LocalStore.get))


def _without_blobs(get):
    def records_only(self, key, start=0, size=None):
        assert not key.startswith("blobs/")
        return get(self, key, start, size)

    return records_only


def test_the_folder_means_the_same_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    planned = plan({"hub": "s3://bucket/hub", "base": "base", "hub_cache": "cache", "hub_cache_bytes": "1000"}, {})
    assert (planned.config.hub_cache, planned.config.hub_cache_bytes) == (str(tmp_path / "cache"), 1000)
