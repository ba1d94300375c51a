"""Laws of a whole hub in a repo of the Hugging Face Hub: one commit per push, many writers, the page about it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml

from deltahub.cli import main
from deltahub.errors import FormatError, IntegrityError, NotFoundError, StoreError
from deltahub.hub import Hub
from deltahub.stores.cached import BlobCache
from deltahub.stores.hf import HfStore
from deltahub.stores.paced import Pace
from deltahub.syncing import sync
from tests.hubs_to_sync import content
from tests.stores.faults import Fault
from tests.stores.hf_place import QUICK
from tests.stores.hf_server import HfServer, Repo
from tests.stores.writers import SeveralWriters
from tests.test_hub import dump, tiny

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # how huggingface_hub uploads


@pytest.fixture
def new_hub(new_hf_store: Callable[..., HfStore]) -> Callable[[], Hub]:
    Hub.open(new_hf_store().url)
    return lambda: Hub(new_hf_store())


@pytest.fixture
def hub(new_hub: Callable[[], Hub]) -> Hub:
    return new_hub()


@pytest.fixture
def repo(hf: HfServer, hub: Hub) -> Repo:
    return hf.repos[hub.store.repo]


def test_every_operation_is_one_commit(hub: Hub, repo: Repo):
    first, second = tiny("a", 1), tiny("a", 2)

    def made(work: Callable[[], object]) -> int:
        before = len(repo.commits)
        work()
        return len(repo.commits) - before

    assert made(lambda: hub.push(first, ["prod"])) == 1
    assert made(lambda: hub.push(second)) == 1
    assert made(lambda: hub.push(second)) == 0
    assert made(lambda: hub.tag("a", 2, "prod")) == 1
    assert dump(hub.pull("a:prod")) == dump(second)
    assert made(lambda: hub.remove("a@1")) == 1
    assert made(hub.gc) == 1
    assert made(hub.gc) == 0
    assert made(lambda: hub.untag("a", "prod")) == 1
    assert made(hub.verify) == 0
    assert hub.verify().problems == ()
    assert hub.push(first).number == 3
    assert not [path for path in repo.head.files if path.startswith(("pushing/", "collecting/", ".probes/"))]


class TestHuggingFace(SeveralWriters):
    grace = 0.0


def test_there_and_back(new_hub: Callable[[], Hub], repo: Repo, tmp_path):
    local, back = Hub.open(tmp_path / "hub"), Hub.open(tmp_path / "back")
    for task, seed in (("a", 0), ("a", 1), ("b", 1), ("c", 2)):
        local.push(tiny(task, seed), ["prod"])
    before = len(repo.commits)
    report = sync(local, new_hub())
    assert (len(report.copied), report.failed, len(repo.commits) - before) == (4, (), 2)
    assert content(new_hub()) == content(local)
    again = sync(local, new_hub())
    assert (again.copied, again.blobs, len(repo.commits) - before) == ((), 0, 2)
    sync(new_hub(), back)
    assert content(back) == content(local)
    assert back.tags("a") == {"prod": 2}


def test_a_sync_that_another_outran_tells_what_it_did_once(hf: HfServer, new_hub: Callable[[], Hub], tmp_path):
    local = Hub.open(tmp_path / "hub")
    for seed in range(3):
        local.push(tiny("a", seed), ["prod"])
    hf.faults.append(Fault("conflict", "POST", "/commit/", times=2))
    report = sync(local, new_hub())
    assert [(copy.source, copy.target) for copy in report.copied] == [(f"a@{n}", f"a@{n}") for n in (1, 2, 3)]
    assert (report.tags, content(new_hub())) == (("a:prod",), content(local))


@pytest.mark.parametrize("part", ["POST /preupload/", "POST /commit/", "POST objects/batch", "PUT /"])
def test_a_push_that_is_refused_midway_is_invisible(hf: HfServer, hub: Hub, repo: Repo, part):
    hub.push(tiny("old", 3))
    before = dict(repo.head.files)
    hf.objects.clear()
    hf.faults.append(Fault("403", *part.split(), times=100))
    with pytest.raises(StoreError, match="denied"):
        hub.push(tiny("a", 1))
    hf.faults.clear()
    assert repo.head.files == before
    assert hub.push(tiny("a", 1)).number == 1


def test_a_cache_and_a_pace_change_nothing(hub: Hub, repo: Repo, tmp_path):
    other = Hub.open(hub.store.url, cache=BlobCache(tmp_path, 1 << 20), pace=Pace(1 << 30))
    before = len(repo.commits)
    other.push(tiny("a", 1), ["prod"])
    assert len(repo.commits) == before + 1
    assert dump(other.pull("a:prod")) == dump(other.pull("a")) == dump(tiny("a", 1))
    assert b"| a |" in repo.head.files["README.md"][0]


def test_wrong_bytes_of_the_right_size_are_noticed(hf: HfServer, hub: Hub):
    hub.push(tiny("a", 1))
    hf.faults.append(Fault("wrong", "GET", "?Expires", times=100))
    with pytest.raises((IntegrityError, FormatError)):
        hub.pull("a")


def test_a_push_makes_few_requests(hf: HfServer, new_hub: Callable[[], Hub]):
    new_hub().push(tiny("a", 1))
    hub = new_hub()
    hf.requests.clear()
    hub.push(tiny("b", 2), ["prod"])
    requests = [f"{method} {path}" for method, path, _ in hf.requests]
    assert len(requests) <= 25, requests


def test_the_page_follows_what_is_pushed(hub: Hub, repo: Repo):
    def page() -> str:
        return repo.head.files["README.md"][0].decode()

    hub.push(tiny("a", 1), ["prod"])
    hub.push(tiny("b", 2))
    assert "| a |" in page()
    assert "| b |" in page()
    repo.add("by hand", "", {"README.md": (page().replace("# ", "# My ", 1).encode() + b"\nBelow.\n", False)}, [])
    hub.push(tiny("b", 3))
    hub.remove("a", force=True)
    assert "| a |" not in page()
    assert page().count("## Tasks") == 1
    assert "# My " in page()
    assert page().endswith("\nBelow.\n")
    assert yaml.safe_load(page().split("---\n")[1])["library_name"] == "deltahub"


def test_a_push_reads_no_record_of_other_tasks(hf: HfServer, new_hub: Callable[[], Hub]):
    for seed in range(4):
        new_hub().push(tiny(f"t{seed}", seed))
    hf.requests.clear()
    new_hub().push(tiny("b", 9))
    assert hf.sent("GET", "/tasks/t") == []


def test_the_command_line_takes_the_url(hf: HfServer, tmp_path, capsys, monkeypatch):
    url, file = "hf://team/by-command", tmp_path / "a.delta"
    monkeypatch.setattr("deltahub.stores.hf_client.Patience", lambda: QUICK)
    tiny("a", 1).save(file)

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in [*arguments, "--hub", url]]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert run("push", file, "--tag", "prod").startswith("a@1 ")
    assert "prod" in run("list")
    run("pull", "a:prod", "-o", tmp_path / "b.delta")
    assert (tmp_path / "b.delta").read_bytes() == file.read_bytes()
    assert "deltahub pull a --hub hf://team/by-command" in run("card")


def test_no_hub_is_told_in_one_line(hf: HfServer, hub: Hub, capsys):
    assert main(["list", "--hub", "hf://team/none-such"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "hf auth login" in error
    with pytest.raises(NotFoundError, match="no hub"):
        Hub.open("hf://team/none-such", create=False)


def test_a_repo_of_something_else_is_refused(hf: HfServer, new_hf_store):
    new_hf_store().put("model.safetensors", b"weights")
    with pytest.raises(FormatError, match=r"has files but is no hub"):
        Hub.open(new_hf_store().url)
