"""The cache, limits of the line, and pulls of several tasks, as a user of the command line meets them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from deltahub import records
from deltahub.cli import main
from deltahub.hub import Hub
from deltahub.stores import MemoryStore, open_store, paced
from tests.stores.watched import RemoteStore
from tests.test_hub import tiny


@pytest.fixture
def remote(monkeypatch, tmp_path) -> RemoteStore:
    """What every URL opens: a remote hub with three tasks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DELTAHUB_CACHE", str(tmp_path / "kept"))
    monkeypatch.delenv("DELTAHUB_CACHE_LIMIT", raising=False)
    monkeypatch.setenv("DELTAHUB_HUB", "s3://far/away")
    store = RemoteStore(MemoryStore("far"))
    store.put("hub.json", records.HUB)
    for seed, task in enumerate(("glue-a", "glue-b", "other")):
        Hub(store).push(tiny(task, seed), ["prod"] if task != "glue-b" else ())

    def opened(url):
        return store if str(url).startswith("s3://") else open_store(url)

    monkeypatch.setattr("deltahub.hub.open_store", opened)
    store.asked.clear()
    return store


@pytest.fixture
def run(capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return call


def blobs_read(remote: RemoteStore) -> int:
    return sum(method == "get" and key.startswith("blobs/") for method, key in remote.asked)


def test_a_second_pull_takes_the_blobs_from_the_cache_and_no_cache_does_not(run, remote):
    assert run("pull", "glue-a", "-o", "1.delta")[0] == 0
    first = blobs_read(remote)
    assert run("pull", "glue-a", "-o", "2.delta")[0] == 0
    assert blobs_read(remote) == first > 0
    assert run("pull", "glue-a", "-o", "3.delta", "--no-cache")[0] == 0
    assert blobs_read(remote) == 2 * first
    assert Path("1.delta").read_bytes() == Path("2.delta").read_bytes() == Path("3.delta").read_bytes()


def test_cache_shows_and_clears_what_was_kept(run, remote):
    found = json.loads(run("cache", "--json")[1])
    assert (found["entries"], found["limit_bytes"]) == (0, 10**10)
    run("inspect", "glue-a")
    found = json.loads(run("cache", "--json")[1])
    assert found["entries"] == 2
    assert found["bytes"] > 0
    code, out, err = run("cache", "--clear")
    assert (code, "2 files removed" in err) == (0, True)
    assert str(Path("kept").absolute()) in out
    assert json.loads(run("cache", "--json")[1])["bytes"] == 0


def test_a_limit_of_nothing_keeps_nothing(run, remote, monkeypatch):
    monkeypatch.setenv("DELTAHUB_CACHE_LIMIT", "0")
    assert run("pull", "glue-a")[0] == 0
    assert not Path("kept").exists()
    code, _, err = run("cache")
    assert (code, "$DELTAHUB_CACHE_LIMIT" in err) == (2, True)


def test_a_folder_that_cannot_be_used_is_a_word_and_no_error(run, remote):
    Path("kept").write_bytes(b"")
    code, _, err = run("pull", "glue-a")
    assert code == 0
    assert err.count("the cache in") == 1


def test_a_hub_in_a_folder_has_no_cache(run, remote):
    Hub.open("hub").push(tiny("a", 1))
    assert run("pull", "a", "--hub", "hub")[0] == 0
    assert not Path("kept").exists()


def test_a_glob_pulls_each_task_into_its_file_from_one_listing(run, remote):
    code, out, err = run("pull", "glue-*", "other", "-o", "tasks")
    assert code == 0, err
    assert out.split() == ["tasks/glue-a.delta", "tasks/glue-b.delta", "tasks/other.delta"]
    assert sorted(path.name for path in Path("tasks").iterdir()) == ["glue-a.delta", "glue-b.delta", "other.delta"]
    assert [key for method, key in remote.asked if method == "list"] == ["tasks"]
    assert run("inspect", "tasks/glue-b.delta")[0] == 0


def test_a_glob_with_a_tag_pulls_what_has_it(run, remote):
    assert run("pull", "*:prod")[1].split() == ["glue-a.delta", "other.delta"]


def test_pulling_again_reads_no_blob_and_replaces_nothing(run, remote):
    assert run("pull", "*", "-o", "tasks")[0] == 0
    read = blobs_read(remote)
    assert run("pull", "*", "-o", "tasks", "--no-cache")[0] == 0
    assert blobs_read(remote) == read
    Path("tasks/glue-b.delta").write_bytes(b"mine")
    Path("tasks/glue-a.delta").unlink()
    code, _, err = run("pull", "*", "-o", "tasks")
    assert (code, "--force" in err) == (2, True)
    assert Path("tasks/glue-b.delta").read_bytes() == b"mine"
    assert not Path("tasks/glue-a.delta").exists()
    assert run("pull", "*", "-o", "tasks", "--force")[0] == 0
    assert run("inspect", "tasks/glue-b.delta")[0] == 0


REFUSED = [
    (["pull", "nothing-*"], 1, "no task matches"),
    (["pull", "glue-*@1"], 2, "a glob of task names"),
    (["pull", "glue-a", "glue-a@1"], 2, "asked for twice"),
    (["pull", "glue-a", "glue-x"], 1, "did you mean"),
    (["pull", "glue-a", "--limit-rate", "fast"], 2, "--limit-rate"),
    (["pull", "glue-a", "--limit-rate", "0"], 2, "--limit-rate"),
    (["pull", "glue-a", "--jobs", "0"], 2, "--jobs"),
    (["verify", "--limit-rate", "1", "--jobs", "-3"], 2, "--jobs"),
]


@pytest.mark.parametrize(("arguments", "code", "told"), REFUSED)
def test_what_cannot_be_meant_is_one_clear_line(run, remote, arguments, code, told):
    found, out, err = run(*arguments)
    assert (found, out, told in err, err.count("\n")) == (code, "", True, 1)
    assert list(Path().glob("*.delta")) == []


def test_a_wrong_limit_of_the_cache_is_named(run, remote, monkeypatch):
    monkeypatch.setenv("DELTAHUB_CACHE_LIMIT", "lots")
    code, _, err = run("pull", "glue-a")
    assert (code, "$DELTAHUB_CACHE_LIMIT" in err) == (2, True)


@pytest.mark.parametrize(
    "arguments", [["push", "a.delta"], ["pull", "glue-a"], ["verify"], ["sync", "s3://far/away", "copy"]]
)
def test_each_command_that_moves_bytes_takes_its_time(run, remote, monkeypatch, arguments):
    waits: list[float] = []
    pace = paced.Pace
    monkeypatch.setattr(paced, "Pace", lambda rate, jobs: pace(rate, jobs, clock=time.monotonic, sleep=waits.append))
    tiny("a", 5).save("a.delta")
    code, _, err = run(*arguments, "--limit-rate", "10kB", "--jobs", 2)
    assert code == 0, err
    assert max(waits) > 0.05


@pytest.mark.parametrize(
    ("folder", "arguments", "words"),
    [
        ("~nobody-here/cache", ["pull", "a"], "$DELTAHUB_CACHE: expected a folder"),
        ("", ["pull", "a", "--require-signature", ""], "the name of a key file is empty"),
    ],
)
def test_names_that_name_nothing_are_refused(run, remote, monkeypatch, folder, arguments, words):
    if folder:
        monkeypatch.setenv("DELTAHUB_CACHE", folder)
    code, _, said = run(*arguments)
    assert code == 2
    assert words in said
