"""Batches of a row for each task: every way to answer them, checked and then timed in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import common
import torch

from deltahub.encoding import Encoded, pad
from mixed import checking, peers
from mixed.checking import Scores
from mixed.made import KINDS, Made

DEDICATED = "dedicated"


@dataclass(frozen=True)
class Way:
    """One way to answer a batch.

    Attributes:
        run: what is timed.
        scores: of what ``run`` gives.
        wanted: what they must be.
    """

    run: Callable[[], Any]
    scores: Callable[[Any], Scores]
    wanted: Scores


class Rows:
    """As many tasks of each kind as rows, wherever they are needed, and the peers with the same numbers."""

    def __init__(self, made: Made, rows: int) -> None:
        self.made = made
        self.rows = rows
        deltas = {kind: [made.delta(seed, kind) for seed in range(rows)] for kind in (*KINDS, "head")}
        self.models = {kind: made.models(made.resident, own) for kind, own in deltas.items()}
        self.mixable = {kind: [made.mixer.admit(model) for model in self.models[kind]] for kind in KINDS}
        alone = [made.matrices_alone(delta) for delta in deltas["masked"]]
        self.matrices_alone = made.models(made.resident, alone)
        self.one_by_one = made.models(made.swapped, deltas["masked"])
        [self.dedicated] = made.models(made.dedicated, deltas["masked"][:1])
        made.dedicated.swap(self.dedicated.prepared)
        self.lora = peers.lora(made, deltas["low rank"])
        self.plain = peers.block_diagonal(made, deltas["masked"])

    def measure(self, tokens: int, rounds: int) -> dict[str, Any]:
        """One row of the table: milliseconds of the dedicated batch, the other ways' times that, and what checks found.

        Raises:
            checking.WrongError: something is wrong; then nothing was timed.
        """
        made = self.made
        encoded = made.encoded(self.dedicated, self.rows, tokens)
        with torch.inference_mode():
            ways, telling = self.ways(encoded)
            off = {name: checking.check(name, way.scores(way.run()), way.wanted) for name, way in ways.items()}
            products_off = checking.check_products(made.mixer, self.rows, tokens)
            times = common.alternate(
                {name: partial(_finished, way.run, made.device) for name, way in ways.items()}, rounds
            )
        return {
            "rows": self.rows, "tokens": tokens, "dedicated_ms": 1e3 * statistics.median(times[DEDICATED]),
            "ratios": {name: common.ratio(times, name, DEDICATED) for name in ways if name != DEDICATED},
            "masked_by_one_by_one": common.ratio(times, "masked", "one by one"),
            "peft_by_masked": common.ratio(times, "PEFT LoRA", "masked"),
            "peft_by_low_rank": common.ratio(times, "PEFT LoRA", "low rank"),
            "off": off, "products_off": products_off, "telling": telling,
        }  # fmt: skip

    def ways(self, encoded: list[Encoded]) -> tuple[Mapping[str, Way], float]:
        """By name, the first of them `DEDICATED`; and the least that a task's values change an answer."""
        made, resident = self.made, self.made.resident
        inputs = pad(made.tokenizer, [item.tokens for item in encoded])
        inputs = {name: column.to(made.device) for name, column in inputs.items()}
        wanted = {kind: checking.swapped(resident, models, encoded) for kind, models in self.models.items()}
        telling = min(checking.check_telling(kind, wanted[kind], wanted["head"]) for kind in KINDS)
        of_one = checking.swapped(resident, self.rows * self.models["masked"][:1], encoded)
        of_matrices = checking.swapped(resident, self.matrices_alone, encoded)
        dedicated, mixer = self.dedicated, made.mixer

        def backbone(run: peers.Backbone, models: str | None, wanted: Scores) -> Way:
            heads = self.models[models] if models else self.rows * [dedicated]
            return Way(
                partial(run, inputs), lambda states: checking.of_states(heads, states, inputs["attention_mask"]), wanted
            )

        ways = {
            DEDICATED: Way(lambda: dedicated.run(encoded), checking.of_answers, of_one),
            "bare pass": backbone(peers.bare(made.dedicated.module), None, of_one),
        }
        for kind in KINDS:
            rows = list(zip(self.mixable[kind], encoded, strict=True))
            ways[kind] = Way(
                partial(mixer.run, rows), lambda mixed: checking.of_answers(row.answer for row in mixed), wanted[kind]
            )
        ways["one by one"] = Way(partial(self._one_by_one, encoded), checking.of_answers, wanted["masked"])
        ways["PEFT LoRA"] = backbone(self.lora, "low rank", wanted["low rank"])
        ways["block diagonal"] = backbone(self.plain, "masked", of_matrices)
        return ways, telling

    def _one_by_one(self, encoded: list[Encoded]) -> list[Any]:
        found: list[Any] = []
        for model, item in zip(self.one_by_one, encoded, strict=True):
            self.made.swapped.swap(model.prepared)
            found += model.run([item])
        return found


def _finished(job: Callable[[], object], device: torch.device) -> None:
    """A GPU works on after a call has returned: the job is done when it is, and the next one finds it idle."""
    job()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
