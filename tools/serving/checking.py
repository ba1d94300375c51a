"""Whether answers are right: to the last bit where a text was alone in its pass, else within TOLERANCE."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving import wire
from serving.load import Sample
from serving.reference import Key, Known, Plain

TOLERANCE = 1e-5
RETRYABLE = (429, 503)
_SHOWN = 5


@dataclass
class Tally:
    """What the check found.

    Attributes:
        texts: answers checked, one for each text.
        alone: of these, the only text of their pass.
        equal: of the texts, those equal to the last bit.
        ties: words whose two best labels are closer than TOLERANCE and came in the other order.
        largest: the largest difference.
        wrong: what was wrong, a line each.
    """

    texts: int = 0
    alone: int = 0
    equal: int = 0
    ties: int = 0
    largest: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.texts += other.texts
        self.alone += other.alone
        self.equal += other.equal
        self.ties += other.ties
        self.largest = max(self.largest, other.largest)
        self.wrong += other.wrong

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "texts": self.texts, "alone_in_their_pass": self.alone, "equal_to_the_bit": self.equal, "ties": self.ties,
            "largest_difference": self.largest, "wrong": len(self.wrong), "examples": self.wrong[:_SHOWN],
        }  # fmt: skip


def keys(samples: Sequence[Sample], version: Callable[[Sample], str] = wire.version) -> list[Key]:
    """The questions whose right answers `check` needs."""
    return [(version(sample), text) for sample in samples if sample.status == 200 for text in sample.ask.texts]


def check(
    samples: Sequence[Sample],
    known: Mapping[Key, Known],
    *,
    version: Callable[[Sample], str] = wire.version,
    same_digest: bool = True,
    alone: bool = False,
) -> Tally:
    """Compares every answer of status 200.

    Args:
        known: from `reference.compute`.
        version: whose answer a sample should be; what its headers say by default.
        same_digest: the headers must name the digest that `known` has.
        alone: there was one client, so that whoever asked for one text had a pass with one row.
    """
    tally = Tally()
    for sample in samples:
        if sample.status != 200:
            continue
        reference = version(sample)
        found = wire.answers(sample)
        if len(found) != len(sample.ask.texts):
            tally.wrong.append(f"{reference}: {len(found)} answers for {len(sample.ask.texts)} texts")
            continue
        told = wire.told(sample)
        single = told.rows == 1 or (alone and len(found) == 1)
        for text, answer in zip(sample.ask.texts, found, strict=True):
            right = known[reference, text]
            if same_digest and told.digest is not None and told.digest != right.digest:
                tally.wrong.append(f"{reference}: digest {told.digest[:16]}, expected {right.digest[:16]}")
            _compare(tally, f"{reference} {text!r}", answer, right.plain, single)
    return tally


def _compare(tally: Tally, what: str, found: Plain, right: Plain, alone: bool) -> None:
    tally.texts += 1
    tally.alone += alone
    if found == right:
        tally.equal += 1
        return
    if found.words != right.words or len(found.numbers) != len(right.numbers):
        tally.wrong.append(f"{what}: of {found.words[:4]}, expected {right.words[:4]}")
        return
    differences = [abs(a - b) for a, b in zip(found.numbers, right.numbers, strict=True)]
    tally.largest = max(tally.largest, *differences)
    if alone:
        tally.wrong.append(f"{what}: {max(differences):.3g} off, though alone in its pass")
    elif max(differences) > TOLERANCE:
        tally.wrong.append(f"{what}: {max(differences):.3g} off")
    elif found.labels != right.labels:
        pairs = zip(found.labels, right.labels, found.numbers, strict=True)
        ties = [score for own, other, score in pairs if own != other]
        tally.ties += len(ties)
        if max(ties) > 0.5 + TOLERANCE:  # two labels of one word cannot both be that probable
            tally.wrong.append(f"{what}: labels {found.labels}, expected {right.labels}")


def outcomes(samples: Sequence[Sample]) -> dict[str, int]:
    """How requests ended: by status; failed connections apart; those that may be asked again with when."""
    found: Counter[str] = Counter()
    for sample in samples:
        if sample.status == 0:
            found["no answer"] += 1
        elif sample.status in RETRYABLE:
            found[f"{sample.status} {'with' if 'retry-after' in sample.headers else 'without'} retry-after"] += 1
        else:
            found[str(sample.status)] += 1
    return dict(sorted(found.items()))


def failures(samples: Sequence[Sample]) -> list[str]:
    """Requests lost other than by an error that says when to ask again."""
    return [
        f"{sample.ask.name}: {sample.status} {sample.body[:160]}"
        for sample in samples
        if sample.status != 200 and not (sample.status in RETRYABLE and "retry-after" in sample.headers)
    ]


def require_all(samples: Sequence[Sample]) -> None:
    """Raises RuntimeError unless every request of a timed part was answered."""
    lost = [sample for sample in samples if sample.status != 200]
    if lost or not samples:
        shown = f"{lost[0].ask.path}: {lost[0].status} {lost[0].body[:300]}" if lost else "none was asked"
        raise RuntimeError(f"{len(lost)} of {len(samples)} requests were not answered; {shown}")
