"""The store in a repo of the Hugging Face Hub: the contract, over its real client, and what goes wrong on the way."""

from __future__ import annotations

import pytest

from deltahub.errors import ConflictError, NotFoundError, StoreError, UsageError
from deltahub.stores import open_store
from deltahub.stores.base import Store, transacted
from deltahub.stores.hf import HfStore
from deltahub.stores.hf_client import BrokenOffError
from deltahub.stores.hf_reading import Reading
from tests.stores.faults import Fault
from tests.stores.hf_place import QUICK
from tests.stores.hf_server import HfServer, Repo
from tests.stores.test_contract import StoreContract

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # how huggingface_hub uploads
BINARY = b"\0" + bytes(range(256)) * 400


class TestHfStore(StoreContract):
    replacements = 6

    @pytest.fixture
    def store(self, hf_store: HfStore) -> HfStore:
        return hf_store


def commits(store: HfStore, hf: HfServer) -> int:
    return len(hf.repos[store.repo].commits)


def test_a_transaction_is_one_commit(hf: HfServer, new_hf_store):
    store = new_hf_store()
    store.put("old", b"old")
    before = commits(store, hf)
    with store.transaction() as inside:
        inside.put("lease", b"x")
        inside.put("a/b", BINARY)
        assert inside.put_new("a/c", b"c") is True
        assert inside.put_new("a/c", b"d") is inside.put_new("old", b"d") is False
        inside.delete("old")
        inside.delete("lease")
        assert {entry.key: entry.size for entry in inside.list()} == {"a/b": len(BINARY), "a/c": 1}
        assert (inside.get("a/b", 3, 9), inside.stat("old")) == (BINARY[3:12], None)
        with inside.transaction() as nested:
            nested.put("a/d", b"d")
        assert {entry.key for entry in new_hf_store().list()} == {"old"}
    assert commits(store, hf) == before + 1
    assert {entry.key for entry in new_hf_store().list()} == {"a/b", "a/c", "a/d"}
    assert "lease" not in hf.repos[store.repo].head.files
    assert new_hf_store().get("a/b") == BINARY


def test_a_transaction_with_nothing_to_write_or_that_failed_commits_nothing(hf: HfServer, hf_store):
    hf_store.put("a", b"x")
    before = commits(hf_store, hf)
    with hf_store.transaction() as inside:
        inside.put("b", b"x")
        inside.delete("b")
        inside.delete("never")

    def fail(inside: Store) -> None:
        inside.put("b", b"x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        transacted(hf_store, fail)
    assert commits(hf_store, hf) == before


def test_a_transaction_reads_one_state_and_loses_to_another(new_hf_store):
    store = new_hf_store()
    store.put("a", b"one")
    transaction = store.transaction()
    inside = transaction.__enter__()
    new_hf_store().put("a", b"two")
    assert inside.get("a") == b"one"
    inside.put("b", b"x")
    with pytest.raises(ConflictError):
        transaction.__exit__(None, None, None)
    assert [entry.key for entry in store.list()] == ["a"]


def test_work_is_done_again_on_the_new_state(hf: HfServer, hf_store):
    hf_store.put("n", b"1")
    hf.faults += [Fault("conflict", "POST", "/commit/", times=2)]
    tried = []

    def count(inside: Store) -> int:
        tried.append(inside)
        inside.put("n", b"%d" % (int(inside.get("n")) + 1))
        return len(tried)

    assert transacted(hf_store, count) == 3
    assert hf_store.get("n") == b"2"


@pytest.mark.parametrize("kind", ["drop", "503", "429 0"])
@pytest.mark.parametrize("part", ["/commit/", "/refs", "/paths-info/"])
def test_a_write_through_a_bad_line_is_made_once(hf: HfServer, hf_store, kind, part):
    """Also where the commit was made and only its answer got lost."""
    hf_store.put("b", b"x")
    before = commits(hf_store, hf)
    hf.faults.append(Fault(kind, "", part))
    assert hf_store.put_new("a", b"x") is True
    assert hf.faults[0].met == 1
    assert (hf_store.get("a"), commits(hf_store, hf)) == (b"x", before + 1)


def test_a_server_that_names_no_commit_is_asked_a_few_times(hf_store, monkeypatch):
    asked: list[str] = []

    def break_off(reading: Reading, url: str) -> None:
        asked.append(url)
        assert len(asked) < 50
        reading.received = len(asked) % 2
        raise BrokenOffError("some bytes came, which are of no use")

    monkeypatch.setattr(Reading, "_read", break_off)
    with pytest.raises(StoreError, match="some bytes"):
        hf_store.get("a")
    assert len(asked) == QUICK.attempts


def test_what_breaks_off_is_read_on_from_there(hf: HfServer, hf_store):
    hf_store.put("a", BINARY)
    hf.requests.clear()
    hf.faults += [Fault("cut", "GET", "?Expires", times=3), Fault("drop", "GET", "/resolve/")]
    assert hf_store.get("a") == BINARY
    ranges = [headers.get("range") for _, path, headers in hf.requests if "?Expires" in path]
    assert len(ranges) == 4
    assert ranges[-1] not in (None, "bytes=0-")


def test_what_is_replaced_while_it_is_read_comes_of_one_state(hf: HfServer, new_hf_store, monkeypatch):
    store = new_hf_store()
    store.put("a", BINARY)
    hf.faults.append(Fault("cut", "GET", "?Expires"))
    monkeypatch.setattr("deltahub.stores.hf_client.pause", lambda *_: new_hf_store().put("a", BINARY[::-1]))
    assert store.get("a") == BINARY
    assert store.get("a") == BINARY[::-1]


def test_the_token_stays_with_its_host(hf: HfServer, hf_store):
    hf_store.put("a", BINARY)
    assert hf_store.get("a") == BINARY
    met = {"?Expires" in path: "authorization" in headers for _, path, headers in hf.requests if "GET" in _}
    assert met == {True: False, False: True}


@pytest.mark.parametrize("where", ["file:///etc/passwd", "ftp://127.0.0.1/a"])
def test_redirects_to_other_kinds_of_places_are_refused(hf: HfServer, hf_store, where):
    hf.faults.append(Fault(f"redirect {where}", "GET", "/resolve/"))
    with pytest.raises(StoreError, match="redirects to"):
        hf_store.get("a")


def test_redirects_end(hf: HfServer, hf_store):
    hf.faults.append(Fault(f"redirect {hf.url}/{hf_store.repo}/resolve/main/a", "GET", "/resolve/", times=100))
    with pytest.raises(StoreError, match="more than 5"):
        hf_store.get("a")
    assert len(hf.sent("GET", "/resolve/")) == 6


def test_what_cannot_get_better_is_not_tried_again(hf: HfServer, hf_store):
    hf.faults.append(Fault("403", "", "", times=100))
    for use in (lambda: hf_store.get("a"), lambda: list(hf_store.list()), lambda: hf_store.put("a", b"")):
        hf.requests.clear()
        with pytest.raises(StoreError, match=r"denied.*hf auth login"):
            use()
        assert len(hf.requests) == 1


def test_no_repo_is_told_in_one_line_with_what_to_do(hf: HfServer):
    store = HfStore("team/none-such", patience=QUICK)
    for use in (
        lambda: store.get("a"),
        lambda: list(store.list()),
        lambda: store.stat("a"),
        lambda: store.put("a", b""),
    ):
        with pytest.raises(StoreError, match=r"no repo for hf://team/none-such.*or it is private.*hf auth login"):
            use()


def test_put_new_makes_the_repo(hf: HfServer):
    store = HfStore("team/new-one", patience=QUICK)
    assert store.put_new("hub.json", b"x") is True
    assert [entry.key for entry in HfStore("team/new-one", patience=QUICK).list()] == ["hub.json"]


def test_a_private_repo_needs_the_token(hf: HfServer, hf_store, monkeypatch):
    hf_store.put("a", b"x")
    hf.repos[hf_store.repo].private = True
    assert hf_store.get("a") == b"x"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(StoreError, match="private"):
        hf_store.get("a")


def test_tags_and_commits_are_read_and_never_written(hf: HfServer, new_hf_store):
    new_hf_store().put("a", b"one")
    repo: Repo = hf.repos[new_hf_store().repo]
    repo.tags["v1"] = repo.head.oid
    new_hf_store().put("a", b"two")
    for revision in ("v1", repo.tags["v1"]):
        store = new_hf_store(revision)
        assert (store.get("a"), store.stat("a").size) == (b"one", 3)
        for write in (
            lambda s=store: s.put("a", b"x"),
            lambda s=store: s.put_new("b", b"x"),
            lambda s=store: s.delete("a"),
        ):
            with pytest.raises(StoreError, match="can be read, but not written: expected a branch"):
                write()
    with pytest.raises(StoreError, match="no such revision"):
        new_hf_store("none").get("a")


def test_what_a_gitignore_names_is_written_all_the_same(hf: HfServer, hf_store):
    hf.repos[hf_store.repo].add("", "", {".gitignore": (b"blobs\n", False)}, [])
    hf_store.put("blobs/a", BINARY)
    assert hf_store.get("blobs/a") == BINARY


def test_listings_go_on_over_pages(hf: HfServer, hf_store):
    many = {f"blobs/{n:05d}": (b"", False) for n in range(2500)}
    hf.repos[hf_store.repo].add("", "", many, [])
    assert {entry.key for entry in hf_store.list("blobs")} == set(many)


def test_a_tag_tells_when_it_moved(hf: HfServer, hf_store):
    hf_store.put("tasks/a/tag.prod.json", b"1")
    first = hf_store.stat("tasks/a/tag.prod.json").modified
    hf_store.put("tasks/a/tag.prod.json", b"2")
    entry = next(hf_store.list("tasks"))
    assert entry.modified > first > 1e9
    assert entry == hf_store.stat("tasks/a/tag.prod.json")


def test_a_place_that_is_no_hub_is_told_in_one_line(hf: HfServer, hf_store):
    hf.faults.append(Fault("page", times=100))
    for use in (lambda: list(hf_store.list()), lambda: hf_store.stat("a"), lambda: hf_store.put("a", b"")):
        with pytest.raises(StoreError, match="not answered as the Hugging Face Hub"):
            use()


def test_an_answer_without_anything_is_no_empty_listing(hf: HfServer, hf_store):
    """A collector that took it for one would delete every blob."""
    hf_store.put("hub.json", b"{}")
    hf_store.put("tasks/a/tag.prod.json", b"1")
    hf.faults.append(Fault("empty", "GET", "/tree/", times=100))
    for folder in ("", "tasks"):
        with pytest.raises(StoreError, match="lists nothing"):
            list(hf_store.list(folder))
    hf.faults.clear()
    assert list(hf_store.list("blobs")) == []


def test_a_commit_whose_answer_says_nothing_is_looked_for(hf: HfServer, hf_store):
    hf.faults.append(Fault("mute", "POST", "/commit/"))
    hf_store.put("a", b"1")
    assert hf_store.get("a") == b"1"
    hf.faults[:] = [Fault("empty", "POST", "/commit/", times=100)]
    with pytest.raises(StoreError, match="does not take what is to be written"):
        hf_store.put("a", b"2")
    hf.faults.clear()
    assert hf_store.get("a") == b"1"


def test_offline_is_told_as_such(hf_store, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StoreError, match="HF_HUB_OFFLINE is set"):
        hf_store.get("a")


@pytest.mark.parametrize(
    "url",
    ["hf://", "hf://a", "hf://a/b/c", "hf://datasets/a", "hf://a/b@", "hf://a/b@../c", "hf://a:x@b/c", "hf://a/ä"],
)
def test_urls_that_name_no_repo_are_refused(url):
    with pytest.raises(UsageError):
        open_store(url)


def test_its_url_opens_it(hf_store, new_hf_store):
    hf_store.put("a", b"x")
    assert open_store(hf_store.url).get("a") == b"x"
    assert open_store(f"{hf_store.url}@main").url == hf_store.url
    with pytest.raises(NotFoundError, match="has no b"):
        open_store(hf_store.url).get("b")
