"""The parameter space: one line of N parameters that every position of a mask counts along."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from deltahub.errors import UsageError
from deltahub.names import names_like

Positions = npt.NDArray[np.int64]

SCOPES = ("blocks", "matrices", "all")


@dataclass(frozen=True)
class SpaceTensor:
    """One tensor of the space: its parameters are the positions ``[offset, offset + size)``, row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def role(self) -> str:
        return role(self.name, self.shape)


@dataclass(frozen=True)
class ParameterSpace:
    """All floating-point tensors of a base, in ascending order of name; a tied tensor counts once.

    Attributes:
        tensors: in canonical order, without gaps.
        aliases: names of tied copies, to the name that counts.
    """

    tensors: tuple[SpaceTensor, ...]
    aliases: dict[str, str]

    @property
    def size(self) -> int:
        """N, the number of parameters."""
        return self.tensors[-1].offset + self.tensors[-1].size if self.tensors else 0

    @cached_property
    def by_name(self) -> dict[str, SpaceTensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    def scope(self, name: str, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[SpaceTensor]:
        """Tensors that a mask may choose from.

        Args:
            name: ``blocks`` (layers and final norms: everything but embeddings, positional tables, poolers and output
                heads), ``matrices`` (those of ``blocks`` with two dimensions or more) or ``all``. Constant buffers
                that some checkpoints carry (causal masks, running statistics) never take part.
            include: globs of tensor names to add.
            exclude: globs of tensor names to leave out, also among the included.

        Raises:
            UsageError: an unknown scope, a glob that matches nothing, or nothing left.
        """
        if name not in SCOPES:
            raise UsageError(f"scope {name!r}", expected=f"one of {', '.join(SCOPES)}")
        chosen = {tensor.name for tensor in self.tensors if _in_scope(tensor, name)}
        chosen |= self._matching(include, "include")
        chosen -= self._matching(exclude, "exclude")
        if not chosen:
            raise UsageError(f"scope {name!r} leaves no tensor to choose from", hint="widen it with --include or all")
        return [tensor for tensor in self.tensors if tensor.name in chosen]

    def split(self, positions: Positions) -> Iterator[tuple[SpaceTensor, slice]]:
        """The tensors that ascending ``positions`` fall in, each with the slice of ``positions`` that does."""
        starts = np.fromiter((tensor.offset for tensor in self.tensors), np.int64, len(self.tensors))
        cuts = np.append(np.searchsorted(positions, starts), len(positions))
        for tensor, low, high in zip(self.tensors, cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            if high > low:
                yield tensor, slice(low, high)

    def widest(self, positions: Positions) -> str:
        """The dtype that holds every parameter at ``positions`` exactly: theirs if they share one, else F32."""
        found = {tensor.dtype for tensor, _ in self.split(positions)}
        return found.pop() if len(found) == 1 else "F32"

    def _matching(self, patterns: Sequence[str], option: str) -> set[str]:
        names = [tensor.name for tensor in self.tensors]
        found: set[str] = set()
        for pattern in patterns:
            if not (matches := names_like(pattern, names)):
                raise UsageError(
                    f"--{option} {pattern!r} matches no tensor",
                    expected=f"a glob over names like {names[len(names) // 2]!r}",
                )
            found.update(matches)
        return found


def _in_scope(tensor: SpaceTensor, scope: str) -> bool:
    kind = tensor.role
    if scope == "all":
        return kind != "buffer"
    return kind == "block" and (scope == "blocks" or len(tensor.shape) >= 2)


_EMBEDDING = re.compile(
    r".*embed.*|wte|wpe|(cls|mask|dist|distillation|register)_tokens?|relative_.*|rel_pos.*|rotary.*"
)
_HEAD = re.compile(
    r"cls|(lm|mlm|classification|qa|generator_lm|vision|prediction)?_?heads?|classifier|.*_classifier|score|qa_outputs"
    r"|.*predictions|vocab_.*|seq_relationship|logits_proj|output_projection|summary|(visual|text)_projection"
)
_BUFFER = re.compile(r"masked_bias|inv_freq|running_(mean|var)|num_batches_tracked|position_ids|logit_scale")


def role(name: str, shape: Sequence[int]) -> str:
    """``embedding``, ``pooler``, ``head``, ``buffer`` or ``block``: which part of a transformer a tensor belongs to.

    Decided by the words of the name alone, so that it needs no model class: embeddings and positional tables wherever
    they stand (T5 keeps one inside its first block), poolers and heads only outside the numbered layers, `buffer` for
    constants that checkpoints carry along. What is left are the layers and the final norms: `block`.
    """
    parts = name.split(".")
    outside = parts[: next((at for at, part in enumerate(parts) if part.isdigit()), len(parts))]
    causal_mask = parts[-1] == "bias" and len(shape) == 4 and tuple(shape[:2]) == (1, 1)
    if causal_mask or _BUFFER.fullmatch(parts[-1]):
        return "buffer"
    if any(_EMBEDDING.fullmatch(part) for part in parts) or outside[:1] == ["shared"] or outside[1:2] == ["shared"]:
        return "embedding"
    if any("pooler" in part for part in outside):
        return "pooler"
    if any(_HEAD.fullmatch(part) for part in outside):
        return "head"
    return "block"
