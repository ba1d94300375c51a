"""Whether tasks share passes: what was measured, the choice that follows from it, and when to give it up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltahub_serve.costs import Choice, fit
from deltahub_serve.runner import Key, Ran, Runner
from deltahub_serve.scheduler import Request, Scheduler

_MOST_FAILED = 3
"""Mixed passes that fail in turn though each of their tasks answers alone, until none is tried any more."""


class Sharing:
    """Belongs to the engine's thread, but for ``told``.

    Args:
        runner: has the mixer, which is taken from it when mixing is given up.
        scheduler: is told whether mixing is cheaper, and when it is given up.
        unmixed: why there is no mixer.
    """

    def __init__(self, runner: Runner, scheduler: Scheduler[Key], unmixed: str) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._unmixed = None if runner.mixer else unmixed
        self._choice: Choice | None = None
        self._failed = 0

    def measure(self, tokenizer: Any) -> None:
        """Times a few passes; gives up mixing where they fail."""
        if self._runner.mixer is None:
            return
        try:
            self._choice = Choice(fit(self._runner, tokenizer))
            self._scheduler.cheaper = self._cheaper
        except Exception as error:  # noqa: BLE001  (whatever it is, tasks are swapped in then)
            self._give_up(error)

    def took(self, done: Ran, tokens: int) -> None:
        """A pass of so many tokens, padding included, has ended."""
        if done.tasks > 1:
            self._failed = 0
        if self._choice is not None:
            self._choice.took(tokens, done.tasks, done.swapped > 0, done.swapped + done.ran)

    def failed(self, error: Exception, *, by_a_task: bool) -> None:
        """A mixed pass has failed; ``by_a_task`` where one of its tasks failed alone, too."""
        self._failed = 0 if by_a_task else self._failed + 1
        if self._failed >= _MOST_FAILED:
            self._give_up(error)

    def told(self) -> dict[str, Any]:
        """For /info: why no tasks can share passes; or which ones cannot, how products are taken, what passes cost."""
        mixer = self._runner.mixer
        if mixer is None or self._choice is None:
            return {"unmixed": self._unmixed}
        alone = {"alone": self._runner.alone, "products": mixer.products.name}
        return {"unmixed": None} | alone | self._choice.as_dict()

    def _cheaper(self, requests: Sequence[Request[Key]], in_place: Key | None) -> bool:
        assert self._choice is not None
        groups: dict[Key, list[int]] = {}
        for request in requests:
            groups.setdefault(request.key, []).append(request.tokens)
        there = [*groups].index(in_place) if in_place in groups else None
        return self._choice.together([*groups.values()], in_place=there, on_base=in_place is None)

    def _give_up(self, error: Exception) -> None:
        self._unmixed = " ".join(f"{error}".split())[:300]
        self._scheduler.mixes = False
        self._runner.mixer = None
