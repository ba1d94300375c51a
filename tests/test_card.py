"""The page about a hub: right figures, nothing of others lost, nothing of manifests believed."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import yaml

from deltahub import card
from deltahub.cli import main
from deltahub.delta import Delta
from deltahub.hub import Hub
from deltahub.stores import MemoryStore
from tests.test_hub import tiny


class Shown(MemoryStore):
    page = "README.md"


@pytest.fixture
def hub() -> Hub:
    store = Shown("shown")
    store.put("hub.json", b"")
    return Hub(store)


def page(hub: Hub) -> str:
    return hub.store.get("README.md").decode()


def front(hub: Hub) -> dict[str, object]:
    return yaml.safe_load(page(hub).split("---\n")[1])


def with_(delta: Delta, **fields: object) -> Delta:
    return replace(delta, manifest=replace(delta.manifest, **fields))


def test_a_push_makes_the_same_page_as_all_anew(hub: Hub):
    for task in ("b", "a", "c"):
        hub.push(tiny(task, ord(task)), ["prod"])
    hub.push(tiny("a", 1))
    hub.tag("a", 2, "best")
    hub.untag("b", "prod")
    hub.remove("c", force=True)
    assert page(hub) == card.text(hub)
    rows = [line.split(" | ")[0] for line in page(hub).splitlines() if line.startswith("| ")]
    assert rows == ["| task", "| a", "| b"]


def test_stores_that_show_nothing_get_no_page(tmp_path):
    hub = Hub.open(tmp_path / "hub")
    hub.push(tiny("a", 1))
    assert {entry.key for entry in hub.store.list()} & {"README.md", card.KEY} == set()


def test_savings_are_those_of_the_records(hub: Hub):
    hub.push(tiny("a", 1))
    record = hub.version("a")
    stored = record.stored + len(record.to_bytes())
    assert f" {stored:,} |" in page(hub)
    assert f"1 task takes {stored:,} bytes" in page(hub)


def test_what_people_wrote_stays(hub: Hub):
    hub.store.put("README.md", "---\nlicense: mit\nmine: [1, ä]\ntags: [x]\n---\n# Üs\r\n\ntext | here\n".encode())
    hub.push(with_(tiny("a", 1), licence="Apache-2.0"))
    hub.store.put("README.md", page(hub).encode() + b"\nmore\xff\n")
    hub.push(tiny("b", 2))
    found = hub.store.get("README.md")
    assert found.count(card.BEGIN.encode()) == found.count(card.END.encode()) == 1
    assert "# Üs\r\n\ntext | here".encode() in found
    assert found.endswith(b"\nmore\xff\n")
    fields = yaml.safe_load(found.split(b"---\n")[1])
    assert (fields["license"], fields["mine"], fields["tags"]) == ("mit", [1, "ä"], ["x", "deltahub"])


def test_front_matter_follows_the_tasks_where_nobody_wrote_it(hub: Hub):
    hub.push(with_(tiny("a", 1), licence="Apache-2.0"))
    assert front(hub)["license"] == "apache-2.0"
    hub.push(with_(tiny("b", 2), licence="LicenseRef-odd"))
    assert "license" not in front(hub)
    hub.remove("a")
    assert front(hub)["license"] == "other"


@pytest.mark.parametrize(
    "old",
    [
        "---\n- a list\n---\ntext",
        "---\n{: [\n---\ntext",
        "---\nnever ends",
        "text",
        "",
        f"---\ndeep: {'[' * 400}{']' * 400}\n---\ntext",
        f"---\nlarge: {'x' * (256 << 10)}\n---\ntext",
    ],
    ids=range(7),
)
def test_a_front_matter_that_is_none_is_text(hub: Hub, old):
    hub.store.put("README.md", old.encode())
    hub.push(tiny("a", 1))
    assert old in page(hub)
    assert front(hub)["library_name"] == "deltahub"


@pytest.mark.parametrize("old", [card.BEGIN, card.END, f"{card.END}\n{card.BEGIN}", f"{card.BEGIN} x"])
def test_marks_that_do_not_match_take_nothing_away(hub: Hub, old):
    hub.store.put("README.md", f"before\n{old}\nafter\n".encode())
    hub.push(tiny("a", 1))
    assert f"before\n{old}\nafter" in page(hub)


HOSTILE = [
    "a|b", "<script>alert(1)</script>", "x\n| y |\n", "`code`", "[a](http://x)", "![a](http://x)", "www.x.com",
    card.BEGIN, card.END, "---", "\u202eevil", "a" * 5000, "https://x.com", "&lt;", "\\|", "**bold**", "$x$",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_only_text(hub: Hub, name):
    hub.push(with_(tiny("a", 1), metrics={name: 0.5}, licence=None))
    hub.push(tiny("b", 2))
    lines = [line for line in page(hub).splitlines() if line.startswith("| ")]
    assert [line.count("|") for line in lines] == [9] * 3
    cell = lines[1].split(" | ")[4]
    assert set(cell).isdisjoint("<>`[]()*!$\\\u202e\n")
    assert "www." not in cell
    assert "://" not in cell
    assert len(cell) < 1000
    assert page(hub).count(card.BEGIN) == page(hub).count(card.END) == 1


@pytest.mark.parametrize("change", [lambda d: d[:-9], lambda d: b"", lambda d: d.replace(b'"a"', b'"x"')])
def test_a_damaged_memory_of_the_page_is_made_anew(hub: Hub, change):
    hub.push(tiny("a", 1))
    hub.store.put(card.KEY, change(hub.store.get(card.KEY)))
    hub.push(tiny("b", 2))
    assert page(hub) == card.text(hub)
    assert "| a |" in page(hub)


def test_the_command_prints_it_or_keeps_a_file_up_to_date(tmp_path, capsys):
    hub, file = Hub.open(tmp_path / "hub"), tmp_path / "CARD.md"
    hub.push(tiny("a", 1))
    assert main(["card", "--hub", str(tmp_path / "hub")]) == 0
    printed = capsys.readouterr().out
    assert printed == card.text(hub)
    file.write_text("Mine.\n")
    assert main(["card", "--hub", str(tmp_path / "hub"), "-o", str(file)]) == 0
    hub.push(tiny("b", 2))
    assert main(["card", "--hub", str(tmp_path / "hub"), "-o", str(file)]) == 0
    assert "Mine.\n" in file.read_text()
    assert file.read_text().count("## Tasks") == 1
    assert "| b |" in file.read_text()


def test_the_command_leaves_alone_what_is_no_page(tmp_path, capsys):
    Hub.open(tmp_path / "hub")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(card.MOST_PAGE + 1))
    for name, told in (("pipe", "not a regular file"), ("large", "at most 4,194,304 bytes")):
        assert main(["card", "--hub", str(tmp_path / "hub"), "-o", str(tmp_path / name)]) == 1
        assert told in capsys.readouterr().err
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "large").stat().st_size == card.MOST_PAGE + 1
