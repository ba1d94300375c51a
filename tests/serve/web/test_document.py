"""The OpenAPI document is true: whatever can be made from it has an answer that it describes, and never a 5xx."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import hypothesis
import schemathesis
from deltahub_serve.config import Config
from deltahub_serve.questions import Question, Reply, TaskCard
from deltahub_serve.web import application
from fastapi import FastAPI
from schemathesis.checks import CHECKS, load_all_checks

from tests.conftest import SOAK
from tests.serve.web.calls import call
from tests.serve.web.canned import KINDS, Canned
from tests.serve.web.conftest import ADMIN_KEY, API_KEY, hashed


class Willing(Canned):
    """Has a task of every name, of the kind that the route wants."""

    async def ask(self, question: Question) -> Reply:
        kinds = question.kinds or ("token-classification",)
        kind = kinds[len(question.texts[0]) % len(kinds)]
        name = next(name for name, held in KINDS.items() if held == kind)
        return replace(await super().ask(replace(question, name=name)), task=question.name)

    async def card(self, name: str) -> TaskCard:
        return replace(await super().card("topic"), name=name)


CONFIG = Config(
    hub="memory://hub", base="base", max_inputs=4, api_keys=(hashed(API_KEY),), admin_keys=(hashed(ADMIN_KEY),),
    default_task="topic",
)  # fmt: skip
APP = application(Willing(), CONFIG)
HELD = [
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "negative_data_rejection", "unsupported_method", "allow_header_conformance", "ignored_auth",
]  # fmt: skip

load_all_checks()
schema = schemathesis.openapi.from_dict(APP.openapi())
schema.config.checks.negative_data_rejection.expected_statuses = ["400", "401", "404", "405", "413", "415", "422"]
schema.app = APP


@schema.parametrize()
@hypothesis.settings(
    max_examples=60 if SOAK else 5, deadline=None, database=None, derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip
def test_the_document_is_true(case: schemathesis.Case) -> None:
    case.call_and_validate(
        headers={"Authorization": f"Bearer {ADMIN_KEY}"}, checks=[CHECKS.get_one(name) for name in HELD]
    )


def test_every_operation_says_what_it_takes_and_answers() -> None:
    document = APP.openapi()
    operations = {(method, path): found for path, held in document["paths"].items() for method, found in held.items()}
    assert len(operations) == 20
    for (method, path), operation in operations.items():
        assert operation["summary"], path
        assert operation["description"], path
        assert set(operation["responses"]) >= {"200", "4XX", "5XX"}, path
        assert ("requestBody" in operation) == (method == "post"), path
        keys = [next(iter(each)) for each in operation.get("security", [])]
        expected = ["admin"] if path.startswith("/admin/") else [] if path in ("/", "/health") else ["key", "admin"]
        assert keys == expected, path


def test_every_field_of_a_body_says_what_is_expected() -> None:
    """Errors end with it."""
    for name, component in APP.openapi()["components"]["schemas"].items():
        if name.endswith("Body"):
            for field, told in component["properties"].items():
                assert told.get("description"), f"{name}.{field}"


def test_the_document_is_served_and_no_page_that_loads_scripts(app: FastAPI) -> None:
    assert call(app, "GET", "/openapi.json").json() == app.openapi()
    assert {call(app, "GET", path).status_code for path in ("/docs", "/redoc")} == {404}


def test_the_application_needs_no_model_and_no_ray() -> None:
    code = "import sys, deltahub_serve.web\nassert not {'torch', 'transformers', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
