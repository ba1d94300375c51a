"""The application over a backend without a model."""

from __future__ import annotations

import hashlib

import pytest
from deltahub_serve.config import Config
from deltahub_serve.web import application
from fastapi import FastAPI

from tests.serve.web.canned import Canned

API_KEY, ADMIN_KEY = "an-api-key", "an-admin-key"


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def backend() -> Canned:
    return Canned()


@pytest.fixture
def config() -> Config:
    return Config(hub="memory://hub", base="base", max_inputs=4, max_body=2000)


@pytest.fixture
def app(backend: Canned, config: Config) -> FastAPI:
    return application(backend, config)


@pytest.fixture
def guarded(backend: Canned, config: Config) -> FastAPI:
    keys = {"api_keys": (hashed(API_KEY), hashed("another")), "admin_keys": (hashed(ADMIN_KEY),)}
    return application(backend, config.model_copy(update=keys))
