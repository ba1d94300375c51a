"""Laws of a whole hub on S3: what holds on a disk holds there, also with two writers and a collector at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from deltahub import keys
from deltahub.cli import common, main
from deltahub.delta import Delta
from deltahub.errors import HubError, IntegrityError, NotFoundError, StoreError
from deltahub.hub import Hub
from deltahub.stores.s3 import S3Store
from tests.stores.conftest import BUCKET
from tests.stores.faults import Fault
from tests.stores.s3_server import S3Server
from tests.stores.writers import SeveralWriters
from tests.test_hub import dump, tiny


@pytest.fixture
def new_hub(new_s3_store: Callable[..., S3Store]) -> Callable[[], Hub]:
    """Hubs that speak to one place, each as another process would."""
    Hub.open(new_s3_store().url)
    return lambda: Hub(new_s3_store())


@pytest.fixture
def hub(new_hub: Callable[[], Hub]) -> Hub:
    return new_hub()


def test_from_push_to_gc(hub: Hub):
    first, second = tiny("a", 1), tiny("a", 2)
    assert (hub.push(first, ["prod"]).number, hub.push(second).number) == (1, 2)
    assert hub.push(second).new is False
    assert dump(hub.pull("a:prod")) == dump(first)
    assert dump(hub.pull("a")) == dump(second)
    hub.tag("a", 2, "prod")
    assert dump(hub.pull("a:prod")) == dump(second)
    assert [(info.task, info.versions, info.tags) for info in hub.tasks()] == [("a", 2, ("prod",))]
    with pytest.raises(HubError, match="named by prod"):
        hub.remove("a@2")
    assert hub.remove("a@1") == ["a@1"]
    assert hub.gc().deleted == ()
    assert hub.gc(grace_seconds=0).bytes > 0
    assert dump(hub.pull("a")) == dump(second)
    assert hub.verify().problems == ()
    with pytest.raises(NotFoundError):
        hub.pull("a@1")
    assert hub.push(first).number == 3


class TestS3(SeveralWriters):
    """With the leases and marks that a place without transactions needs."""


def test_wrong_bytes_of_the_right_size_are_noticed(s3: S3Server, hub: Hub):
    hub.push(tiny("a", 1))
    blob = next(hub.store.list("blobs")).key
    s3.overwrite(BUCKET, hub.store.prefix + blob, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="blob"):
        hub.pull("a")
    assert hub.verify().problems != ()
    hub.push(tiny("a", 1))
    assert dump(hub.pull("a")) == dump(tiny("a", 1))


@pytest.mark.parametrize("part", ["blobs/", "tasks/", "pushing/"])
def test_a_push_that_is_refused_midway_is_invisible(s3: S3Server, hub: Hub, part):
    hub.push(tiny("old", 3))
    s3.faults.append(Fault("403 AccessDenied", "PUT", f"/{part}", times=1000))
    with pytest.raises(StoreError, match="denied"):
        hub.push(tiny("a", 1))
    s3.faults.clear()
    assert [info.task for info in hub.tasks()] == ["old"]
    assert hub.verify().problems == ()
    assert hub.push(tiny("a", 1)).number == 1


def test_a_push_through_a_bad_line_is_whole(s3: S3Server, hub: Hub):
    s3.faults += [Fault("drop", "PUT", part) for part in ("blobs/", "tasks/", "pushing/")]
    s3.faults += [Fault("503 SlowDown", times=2), Fault("cut", "GET", "blobs/")]
    assert hub.push(tiny("a", 1)).number == 1
    assert dump(hub.pull("a")) == dump(tiny("a", 1))
    assert [entry.key for entry in hub.store.list("tasks/a")] == [keys.version("a", 1)]


def test_the_command_line_takes_the_url(s3_endpoint, new_s3_store, tmp_path, capsys):
    url, file = new_s3_store().url, tmp_path / "a.delta"
    tiny("a", 1).save(file)

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in [*arguments, "--hub", url]]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert run("push", file, "--tag", "prod").startswith("a@1 ")
    assert "prod" in run("list")
    run("pull", "a:prod", "-o", tmp_path / "b.delta")
    assert dump(Delta.load(tmp_path / "b.delta")) == dump(tiny("a", 1))
    run("verify")
    run("remove", "a", "--force")
    run("gc")


def test_a_failure_is_one_line(s3_endpoint, capsys):
    assert main(["list", "--hub", "s3://none-such/hub"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no bucket none-such" in error


def test_the_help_names_s3():
    parser = argparse.ArgumentParser()
    common.hub_option(parser)
    assert "s3://bucket/prefix" in parser.format_help()
