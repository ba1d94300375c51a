"""What the application is built from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from deltahub_serve import app
from deltahub_serve.arguments import plan
from deltahub_serve.config import Config, Live, hashed_keys
from deltahub_serve.scheduler import Limits
from deltahub_serve.service import Launch, prepare
from deltahub_serve.settings import LibrarySettings

from deltahub.errors import UsageError
from tests.serve.app.conftest import World

EXAMPLE = Path(__file__).parents[3] / "serve" / "config.yaml"


def test_strings_mean_what_the_values_mean() -> None:
    typed = plan(
        {
            "hub": "h", "base": "b", "threads": 2, "prefetch": ["a", "b"], "replicas": 2,
            "live": {"refresh": 5.0, "pinned": ["a"], "splits": {"sst2": {3: 0.9, 4: 0.1}}},
        }, {},
    )  # fmt: skip
    strings = plan(
        {
            "hub": "h", "base": "b", "threads": "2", "prefetch": "a, b", "replicas": "2", "refresh": "5",
            "pinned": "a", "splits": "sst2@3=0.9,sst2@4=0.1",
        }, {},
    )  # fmt: skip
    assert typed == strings
    assert (typed.gateways, plan({"hub": "h", "base": "b"}, {}).gateways) == (1, 0)
    assert plan(typed.arguments(), {}) == typed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bas": "b"}, "unknown argument bas: expected some of hub, base, "),
        ({"hub": "h"}, "no base; give base=..."),
        ({"base": "b"}, "no hub; give hub=... or set DELTAHUB_HUB"),
        ({"hub": "h", "base": "b", "threads": 0, "refresh": "soon"}, "refresh: Input should be a valid number"),
        ({"hub": "h", "base": "b", "live": {"refesh": 3}}, "known are refresh, remember"),
        ({"hub": "h", "base": "b", "splits": "sst2=1"}, "expected TASK@VERSION=SHARE"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as error:
        plan(arguments, {})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_keys_are_hashed_wherever_they_come_from_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("from-a-file\n")
    told = {"hub": "h", "base": "b"}
    keys = {"DELTAHUB_API_KEYS": "secret-one,secret-two", "DELTAHUB_ADMIN_KEYS": "secret-admin"}
    found = plan(told, keys).config
    assert found.api_keys == hashed_keys("secret-one,secret-two")
    assert found.admin_keys == hashed_keys("secret-admin")
    assert plan(told | {"api_keys_file": str(tmp_path / "keys")}, keys).config.api_keys == hashed_keys("from-a-file")
    with pytest.raises(UsageError) as error:
        plan(told | {"api_keys": ["secret-one"]}, {})
    assert "secret" not in str(error.value)


def test_the_example_says_what_is_built_by_default(hub_world: World) -> None:
    """Every argument and every field of user_config in it exists, and the values are the defaults."""
    document = yaml.safe_load(EXAMPLE.read_text())
    arguments = document["applications"][0]["args"]
    deployments = {one["name"]: one for one in document["applications"][0]["deployments"]}
    arguments |= {"hub": str(hub_world.folder / "hub"), "base": str(hub_world.folder / "base")}
    file = hub_world.folder / "example.yaml"
    file.write_text(yaml.safe_dump(document))
    service = prepare(Launch({}, file, port=0))
    assert service.live == Config(hub="h", base="b").live
    assert set(deployments["Model"]["user_config"]) == set(type(service.live).model_fields)
    assert service.cpus == 5
    built = app.build(service.application.args)
    assert built._bound_deployment.name == "Gateway"
    assert app.build({"hub": "h", "base": "b"})._bound_deployment.name == "Model"


def test_what_nobody_sets_is_what_scheduler_and_library_have_by_themselves() -> None:
    assert (Live().limits, Live().library) == (Limits(), LibrarySettings())


def test_a_server_that_others_can_reach_is_not_loopback() -> None:
    from deltahub_serve.command import _is_loopback

    assert [_is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "192.168.1.2", "host")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
