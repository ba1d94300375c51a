"""Everything that deltahub raises on purpose.

::

    DeltahubError                 one line: what is wrong, expected, found, what to do next
    ├── UsageError                an argument that cannot be meant (a density of 7)
    │   └── TooLongError          a text of more tokens than its task takes
    ├── CheckpointError           a checkpoint that cannot be used (pickled, quantised, NaN, shards missing)
    ├── MismatchError             two good things that do not belong together (a mask of another base)
    ├── OutsideMaskError          a fine-tuned checkpoint changed parameters that the delta cannot hold
    ├── FormatError               bytes that are not what they say they are
    │   ├── NewerFormatError      a hub, record or file in a format of a later deltahub
    │   ├── ManifestError         a manifest with unknown, missing or wrong fields
    │   └── CodecError            an encoded blob that is unknown, truncated, oversized or damaged
    ├── IntegrityError            bytes whose digest is not the one they were asked for by
    │   └── SignatureError        a version that none of the wanted keys has signed
    ├── DataError                 training data that cannot be trained on
    ├── HubError
    │   ├── NotFoundError         no such task, version, tag, mask or blob
    │   └── StoreError            the place where the hub lives failed (permission, disk full, unreachable)
    │       └── ConflictError     another wrote there first; nothing was written, and the same may succeed now
    ├── ServerError               a server that refused, failed, cannot be reached, or is none of ours
    └── ResidentError             a swap that could not be done; the base was restored
        └── PoisonedError         ... and could not be restored: this resident answers nothing any more
"""

from __future__ import annotations

_LONGEST = 2000
"""Characters of a message: names in it come from files, and may be of any length."""


class DeltahubError(Exception):
    """Base of the tree above.

    Args:
        problem: what is wrong, in words that name the file, task or tensor.
        expected: what would have been right.
        got: what was found instead.
        hint: the next thing to do.
    """

    def __init__(
        self, problem: str, *, expected: object | None = None, got: object | None = None, hint: str | None = None
    ) -> None:
        self.problem = problem
        self.expected = expected
        self.got = got
        self.hint = hint
        facts = [f"expected {expected}"] if expected is not None else []
        facts += [f"found {got}"] if got is not None else []
        text = problem + (": " + ", ".join(facts) if facts else "") + (f"; {hint}" if hint else "")
        text = " ".join(text.split())
        super().__init__(text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ...")


class UsageError(DeltahubError): ...


class TooLongError(UsageError):
    """A text, or a pair of texts, of ``tokens`` tokens for a task that takes ``limit`` of them."""

    def __init__(self, problem: str, *, tokens: int, limit: int, hint: str | None = None) -> None:
        super().__init__(problem, hint=hint)
        self.tokens = tokens
        self.limit = limit


class CheckpointError(DeltahubError): ...


class MismatchError(DeltahubError): ...


class OutsideMaskError(DeltahubError):
    """A fine-tuned checkpoint that the delta cannot hold exactly; ``changes`` lists (tensor, changed outside, size)."""

    def __init__(self, problem: str, *, changes: list[tuple[str, int, int]], hint: str | None = None) -> None:
        super().__init__(problem, hint=hint)
        self.changes = changes


class FormatError(DeltahubError): ...


class NewerFormatError(FormatError): ...


class ManifestError(FormatError): ...


class CodecError(FormatError): ...


class IntegrityError(DeltahubError): ...


class SignatureError(IntegrityError):
    """A version without a good signature by any of the ``wanted`` keys; ``signers`` have signed it. All are key ids."""

    def __init__(
        self, problem: str, *, wanted: tuple[str, ...], signers: tuple[str, ...], got: str, hint: str | None = None
    ) -> None:
        super().__init__(problem, expected=f"a signature by {' or '.join(wanted)}", got=got, hint=hint)
        self.wanted = wanted
        self.signers = signers


class DataError(DeltahubError): ...


class HubError(DeltahubError): ...


class NotFoundError(HubError): ...


class StoreError(HubError): ...


class ConflictError(StoreError): ...


class ServerError(DeltahubError):
    """A question that a server did not answer.

    Attributes:
        status: of HTTP; None where there was no response.
        reason: the server's word for it, such as ``"unknown"`` or ``"overloaded"``; None where it gave none.
        near: names like the one that it does not know.
        retryable: whether the same question may be answered later.
        retry_after: seconds until then; None where nobody knows.
    """

    def __init__(
        self,
        problem: str,
        *,
        status: int | None = None,
        reason: str | None = None,
        near: tuple[str, ...] = (),
        retryable: bool = False,
        retry_after: float | None = None,
        expected: object | None = None,
        got: object | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(problem, expected=expected, got=got, hint=hint)
        self.status = status
        self.reason = reason
        self.near = near
        self.retryable = retryable
        self.retry_after = retry_after


class ResidentError(DeltahubError): ...


class PoisonedError(ResidentError): ...
