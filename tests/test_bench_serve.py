"""tools/serving: the check of a server's answers lets nothing wrong pass, on whichever route they came."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[1] / "tools"
sys.path.insert(0, str(TOOLS))
pytest.importorskip("ray")
from serving import checking, timed, wire  # noqa: E402
from serving.changes import Meanings  # noqa: E402
from serving.load import Sample  # noqa: E402
from serving.reference import Known, Plain, plain  # noqa: E402

WORDS = [{"index": 0, "word": "one", "label": "red", "score": 0.4, "start": 0, "end": 3}]
KINDS = {
    "text-classification": {"scores": {"red": 0.25, "green": 0.5, "blue": 0.25}},
    "token-classification": {"words": WORDS},
    "embeddings": {"embedding": [0.6, 0.8]},
}


def sample(kind: str, answer: dict[str, Any], *, rows: int = 1, digest: str = "d" * 64) -> Sample:
    headers = {"x-task": "task", "x-task-version": "3", "x-task-digest": digest, "x-batch-rows": f"{rows}"}
    return Sample(wire.ask("task", kind, ["one"]), 0.0, 1.0, 200, headers, json.dumps({"answers": [answer]}))


def known(answer: dict[str, Any]) -> dict[tuple[str, str], Known]:
    return {("task@3", "one"): Known("d" * 64, plain(answer))}


def moved(answer: dict[str, Any], by: float) -> dict[str, Any]:
    """``answer`` with its first number another one."""
    if "embedding" in answer:
        return {"embedding": [answer["embedding"][0] + by, *answer["embedding"][1:]]}
    if "words" in answer:
        return {"words": [answer["words"][0] | {"score": answer["words"][0]["score"] + by}]}
    return {"scores": answer["scores"] | {"red": answer["scores"]["red"] + by}}


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_alone_in_its_pass_is_right_only_to_the_last_bit(kind: str) -> None:
    right = KINDS[kind]
    assert not checking.check([sample(kind, right)], known(right)).wrong
    assert checking.check([sample(kind, moved(right, 1e-16))], known(right)).wrong
    assert not checking.check([sample(kind, moved(right, 1e-16), rows=2)], known(right)).wrong
    assert checking.check([sample(kind, moved(right, 1e-16), rows=2)], known(right), alone=True).wrong


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_in_company_may_differ_by_the_tolerance_and_no_more(kind: str) -> None:
    right = KINDS[kind]
    assert not checking.check([sample(kind, moved(right, 0.9e-5), rows=2)], known(right)).wrong
    assert checking.check([sample(kind, moved(right, 1.1e-5), rows=2)], known(right)).wrong


def test_another_digest_word_or_number_of_answers_is_wrong() -> None:
    right = KINDS["token-classification"]
    asked = sample("token-classification", right, rows=2)
    assert checking.check([sample("token-classification", right, digest="e" * 64)], known(right)).wrong
    assert checking.check([replace(asked, body='{"answers": []}')], known(right)).wrong
    assert checking.check([asked], known({"words": [WORDS[0] | {"word": "two"}]})).wrong


def test_another_label_is_a_tie_only_where_two_can_be_as_probable() -> None:
    for score, wrong in ((0.4, False), (0.6, True)):
        answer = {"words": [WORDS[0] | {"score": score}]}
        tally = checking.check(
            [sample("token-classification", answer, rows=2)], known({"words": [answer["words"][0] | {"label": "blue"}]})
        )
        assert (tally.ties, bool(tally.wrong)) == (1, wrong)


def test_only_429_and_503_that_say_when_to_ask_again_are_no_failures() -> None:
    fine = sample("embeddings", KINDS["embeddings"])
    said = {"retry-after": "1"}
    retryable = [replace(fine, status=429, headers=said), replace(fine, status=503, headers=said)]
    assert not checking.failures([fine, *retryable])
    lost = [replace(fine, status=0, headers={}), replace(fine, status=503, headers={}), replace(fine, status=500)]
    assert len(checking.failures(lost)) == 3


def test_a_timed_round_with_a_request_that_was_not_answered_is_no_result() -> None:
    fine = sample("embeddings", KINDS["embeddings"])
    checking.require_all([fine])
    for samples in ([], [fine, replace(fine, status=503)]):
        with pytest.raises(RuntimeError):
            checking.require_all(samples)


def test_a_name_means_a_version_until_it_has_moved_on_for_the_bound_or_was_refreshed() -> None:
    meanings = Meanings(bound=10.0)
    meanings.add("task", 1, 0.0, 0.0)
    meanings.add("task", 2, since=100.0, until=101.0)
    assert meanings.could("task", 1, 110.0, 112.0)
    assert not meanings.could("task", 1, 112.0, 113.0)
    assert not meanings.could("task", 2, 98.0, 99.0)
    assert meanings.could("task", 2, 99.0, 100.5)
    meanings.refreshed(["task"], 105.0)
    assert meanings.could("task", 1, 104.0, 120.0)
    assert not meanings.could("task", 1, 106.0, 107.0)
    assert [meanings.staleness("task", number, 105.0) for number in (1, 2)] == [4.0, 0.0]
    assert meanings.could("task@1", 1, 500.0, 501.0)
    assert not meanings.could("task@1", 2, 500.0, 501.0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_route_gives_the_same_plain_answer(kind: str) -> None:
    answer = KINDS[kind]
    shapes = {
        "text-classification": {"data": [{"probs": [0.25, 0.5, 0.25]}]},
        "token-classification": [[{**WORDS[0], "entity": "red"}]],
        "embeddings": {"data": [{"embedding": [0.6, 0.8]}]},
    }
    other = Sample(wire.ask("task", kind, ["one"], route=True), 0.0, 1.0, 200, {}, json.dumps(shapes[kind]))
    assert wire.answers(other) == wire.answers(sample(kind, answer)) == [plain(answer)]


def test_zipf_asks_the_nth_task_an_nth_as_often_and_uniform_all_alike() -> None:
    names = [f"task-{number}" for number in range(4)]
    for zipf, expected in ((True, [0.48, 0.24, 0.16, 0.12]), (False, [0.25] * 4)):
        asks = timed.draw(names, ["one"], lambda name, text: wire.ask(name, "embeddings", [text]), zipf=zipf)
        shares = [sum(ask.name == name for ask in asks) / len(asks) for name in names]
        assert shares == pytest.approx(expected, abs=0.03)


def test_the_numbers_of_plain_answers_are_compared_as_they_are() -> None:
    assert plain(KINDS["text-classification"]) == Plain(("red", "green", "blue"), (), (0.25, 0.5, 0.25))
