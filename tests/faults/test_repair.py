"""What another hub can give again is mended; nothing good is replaced, and what cannot be known is said."""

from __future__ import annotations

import pytest

from deltahub import keys, sealed
from deltahub.cli import main
from deltahub.errors import StoreError
from deltahub.hub import Hub
from deltahub.signing import SigningKey
from deltahub.stores import MemoryStore
from tests.faults.damage import damaged, mendable
from tests.faults.soundness import assert_sound, count_run
from tests.faults.stores import SOAK, Watched, copy_of, flipped
from tests.test_hub import dump, tiny


def test_every_kind_of_damage_is_mended(full):
    store, expected = full
    for turn, (key, bad) in enumerate(mendable(store)):
        if turn % 4 and not SOAK:
            continue
        inner = copy_of(store)
        inner.delete(key) if bad is None else inner.put(key, bad)
        report = Hub(inner).verify(repair=Hub(copy_of(store, name="other")))
        if key.startswith("blobs/") and bad is None and key not in _needed(store):
            assert report.repaired == ()  # loose, and nobody misses it
        else:
            assert [one.key for one in report.repaired] == [key]
            assert inner.get(key) == store.get(key)
        assert report.problems == ()
        assert_sound(Hub(inner), expected)


def _needed(store: MemoryStore) -> set[str]:
    hub = Hub(store)
    names = {s.data.blob for info in hub.tasks() for r in hub.versions(info.task) for s in r.sections}
    return {keys.blob(name) for name in names | {record.data.blob for record in hub.masks() if record.data}}


def test_all_kinds_at_once_are_mended_and_a_sound_hub_is_only_read(full):
    store, expected = full
    inner = damaged(store)
    report = Hub(inner).verify(repair=Hub(store))
    assert report.problems == ()
    assert {one.key for one in report.repaired} > {keys.version("a", 1), keys.version("a", 2), keys.tag("b", "prod")}
    told = {one.key: one.how for one in report.repaired}
    assert "nothing was left here to compare it with" in told[keys.version("a", 1)]
    assert "of the same delta" in told[keys.version("a", 2)]
    assert_sound(Hub(inner), expected)
    watched = Watched(inner, lambda _, method, key: _only_read(method))
    assert Hub(watched).verify(repair=Hub(store)).repaired == ()


def _only_read(method: str) -> None:
    assert method in ("list", "stat", "get", "unfinished")


def test_a_record_of_another_delta_is_not_taken(full):
    """Neither where what is left says so, nor where nothing is left and other numbers differ."""
    store, expected = full
    key = keys.version("a", 1)
    other = Hub(copy_of(MemoryStore(), name="other"))
    other.store.put("hub.json", store.get("hub.json"))
    for seed in (50, 51):
        other.push(tiny("a", seed))
    for bad, words in ((flipped(store.get(key)), "is another version than what is left"), (b"", "may be as well")):
        inner = copy_of(store)
        inner.put(key, bad)
        report = Hub(inner).verify(repair=other)
        assert report.repaired == ()
        [problem] = [problem for problem in report.problems if problem.key == key]
        assert words in problem.unmended
        assert inner.get(key) == bad
        inner.put(key, store.get(key))
        assert_sound(Hub(inner), expected)


def test_what_the_other_hub_lacks_or_has_damaged_is_left_and_told(full):
    store, expected = full
    [key] = [keys.blob(Hub(store).version("b").sections[0].data.blob)]
    for there in (None, flipped(store.get(key))):
        inner, other = copy_of(store), copy_of(store, name="other")
        inner.delete(key)
        other.delete(key)
        if there is not None:
            other.put(key, there)
        report = Hub(inner).verify(repair=Hub(other))
        assert [problem.key for problem in report.problems] == [key]
        assert report.problems[0].unmended
        assert key not in inner._objects
        inner.put(key, store.get(key))
        assert_sound(Hub(inner), expected)


def test_what_was_removed_stays_removed_and_what_is_newer_is_not_touched(full):
    store, expected = full
    inner = copy_of(store)
    Hub(inner).remove("a@1")
    newer = sealed.seal({"format_version": 3, "what": "it has"})
    inner.put(keys.version("b", 1), newer)
    report = Hub(inner).verify(repair=Hub(store))
    assert inner.get(keys.version("b", 1)) == newer
    assert keys.version("a", 1) not in inner._objects
    [problem] = [one for one in report.problems if one.key == keys.version("b", 1)]
    assert "has format 3, this deltahub reads 1 to 2; upgrade deltahub" in problem.unmended
    inner.put(keys.version("b", 1), store.get(keys.version("b", 1)))
    assert_sound(Hub(inner), {name: data for name, data in expected.items() if name != "a@1"})


def test_the_last_version_is_missed_by_its_tag_and_a_removed_one_is_marked(full):
    store, expected = full
    inner = copy_of(store)
    inner.delete(keys.version("a", 2))
    other = Hub(copy_of(store, name="other"))
    assert Hub(inner).verify(repair=other).problems == ()
    assert_sound(Hub(inner), expected)
    inner.delete(keys.version("a", 1))
    other.remove("a@1")
    [repaired] = Hub(inner).verify(repair=other).repaired
    assert "marked as removed" in repaired.how
    assert_sound(Hub(inner), {name: data for name, data in expected.items() if name != "a@1"})


def test_a_damaged_signature_is_mended(full):
    store, expected = full
    signed = Hub(copy_of(store, name="signed"))
    key = SigningKey.generate()
    signed.sign("a@1", key)
    where = keys.signature("a", 1, key.verify_key.id)
    inner = copy_of(signed.store)
    inner.put(where, flipped(inner.get(where)))
    assert [problem.key for problem in Hub(inner).verify().problems] == [where]
    report = Hub(inner).verify(repair=signed)
    assert ([one.key for one in report.repaired], report.problems, report.signatures) == ([where], (), 1)
    assert_sound(Hub(inner), expected)


def test_a_damaged_record_and_its_signature_are_mended_in_one_run(full):
    store, expected = full
    signed = Hub(copy_of(store, name="signed"))
    key = SigningKey.generate()
    signed.sign("a@1", key)
    both = {keys.signature("a", 1, key.verify_key.id), keys.version("a", 1)}
    inner = copy_of(signed.store)
    for where in both:
        inner.put(where, flipped(inner.get(where)))
    report = Hub(inner).verify(repair=signed)
    assert ({one.key for one in report.repaired}, report.problems, report.signatures) == (both, (), 1)
    assert_sound(Hub(inner), expected)


def test_an_object_that_cannot_be_read_is_told_and_a_place_that_is_gone_is_one_error(full):
    store, _ = full
    bad = keys.version("a", 1)

    def unreadable(_: int, method: str, key: str) -> None:
        if method == "get" and key == bad:
            raise StoreError("input/output error")

    report = Hub(Watched(copy_of(store), unreadable)).verify()
    assert [(problem.key, problem.problem) for problem in report.problems] == [(bad, "input/output error")]

    def gone(number: int, *_: str) -> None:
        if number > 5:
            raise StoreError("unreachable")

    with pytest.raises(StoreError, match="unreachable"):
        Hub(Watched(copy_of(store), gone)).verify()
    count_run()


def test_the_command_says_what_it_mended_and_ends_with_0(tmp_path, capsys):
    good, bad = Hub.open(tmp_path / "good"), Hub.open(tmp_path / "bad")
    for hub in (good, bad):
        hub.push(tiny("a", 0), ["prod"])
    key = keys.blob(bad.version("a").sections[0].data.blob)
    command = ["verify", "--hub", str(tmp_path / "bad")]
    (tmp_path / "bad" / key).write_bytes(b"x")
    assert main(command) == 1
    assert "--repair" in capsys.readouterr().err
    assert main([*command, "--repair", str(tmp_path / "good")]) == 0
    assert f"{key}: mended: fetched, its sha256 is its name" in capsys.readouterr().out
    assert main(command) == 0
    (tmp_path / "bad" / key).unlink()
    (tmp_path / "good" / key).unlink()
    assert main([*command, "--repair", str(tmp_path / "good")]) == 1
    assert "not mended: " in capsys.readouterr().out
    assert main([*command, "--repair", str(tmp_path / "nowhere")]) == 1
    assert main([*command, "--repair", str(tmp_path / "bad")]) == 2
    good.push(tiny("a", 0))
    assert main([*command, "--repair", str(tmp_path / "good")]) == 0
    assert_sound(bad, {"a@1": dump(tiny("a", 0))})
