"""The shared mask: a recipe, the k positions that it gives on a base, and their digest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deltahub import digest, formats, selection, tensorfile
from deltahub.checkpoint import Base, Progress
from deltahub.codecs import index as index_codec
from deltahub.digest import is_digest
from deltahub.errors import FormatError, MismatchError, UsageError
from deltahub.files import write_atomic
from deltahub.manifest import REBUILDABLE, BaseRef, MaskRef, Plain, read_base
from deltahub.rawtensor import RawTensor
from deltahub.space import Positions, SpaceTensor
from deltahub.tensorfile import strict_json

_KEY = "deltahub-mask"
_FORMAT_VERSION = 1
_FIELDS = {"base", "codec", "digest", "format_version", "k", "n", "recipe"}


@dataclass(frozen=True)
class Mask:
    """k sorted positions in the parameter space of one base.

    Attributes:
        base: the base that it belongs to.
        n: size of the parameter space, N.
        recipe: what made it, enough to make it again (except for ``file``, ``gradient`` and ``lift``).
        indices: (k,) int64, strictly ascending, read-only.

    Raises:
        FormatError: positions that are not strictly ascending or not in the space.
    """

    base: BaseRef
    n: int
    recipe: Mapping[str, Plain]
    indices: Positions = field(repr=False)

    def __post_init__(self) -> None:
        found = self.indices
        if found.dtype != np.int64 or found.ndim != 1 or not len(found):
            raise FormatError(
                "mask positions", expected="a list of at least one int64", got=f"{found.dtype}, {found.shape}"
            )
        if found[0] < 0 or found[-1] >= self.n or not (np.diff(found) > 0).all():
            raise FormatError("mask positions", expected=f"strictly ascending from 0 to {self.n - 1}")
        found.setflags(write=False)

    @property
    def k(self) -> int:
        return len(self.indices)

    @property
    def rebuildable(self) -> bool:
        """Whether the recipe alone gives the positions to whoever has the base."""
        return self.recipe.get("name") in REBUILDABLE

    @cached_property
    def digest(self) -> str:
        """sha256 over the base digest and the positions as little-endian int64."""
        head = f"deltahub mask 1\n{self.base.digest}\n{self.n}\n{self.k}\n".encode()
        return digest.of_bytes(head, self.indices.astype("<i8", copy=False).data)

    @property
    def ref(self) -> MaskRef:
        return MaskRef(self.digest, self.k, self.n, self.recipe)

    @staticmethod
    def build(
        base: Base,
        density: float = 0.005,
        scope: str = "blocks",
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        recipe: str = "smallest-magnitude",
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Mask:
        """Chooses k = round(density x N) positions, N being the whole parameter space whatever the scope.

        ``smallest-magnitude`` takes the k first by (\\|w\\| widened to fp32 as unsigned bits, position), the mask of
        PaFi (Liao et al., ACL 2023, `m_i = 1 if |w_i| <= sort(|w|)_k`) with ties made total; ``random`` takes the k
        first by (SplitMix64 of seed and position, position). Both are the same on every machine and thread count.

        Args:
            density: share of all parameters, in (0, 1].
            scope: see `ParameterSpace.scope`, as are ``include`` and ``exclude``.
            seed: for ``random``, 0 to 2^63 - 1.

        Raises:
            UsageError: a density or scope that cannot be had.
            CheckpointError: the base has NaN or infinite parameters.
        """
        made: dict[str, Plain] = {"name": recipe, "density": density, "scope": scope}
        made |= {"include": list(include), "exclude": list(exclude)}
        if recipe == "random":
            if not 0 <= seed < 1 << 63:
                raise UsageError("seed", expected="0 to 2^63 - 1", got=seed)
            made["seed"] = seed
        elif recipe != "smallest-magnitude":
            raise UsageError(f"recipe {recipe!r}", expected="smallest-magnitude or random", hint="see Mask.of_indices")
        tensors = base.space.scope(scope, include, exclude)
        k = budget(density, base, tensors)
        if recipe == "random":
            indices = selection.random(base, tensors, k, seed, progress)
        else:
            indices = selection.smallest(base, tensors, k, progress)
        base.check_unchanged()
        return Mask(base.ref, base.space.size, made, indices)

    @staticmethod
    def of_indices(base: Base, indices: Positions) -> Mask:
        """A mask chosen elsewhere (recipe ``file``); its positions must travel with it."""
        return Mask(base.ref, base.space.size, {"name": "file"}, np.array(indices, np.int64))

    @staticmethod
    def rebuild(base: Base, ref: MaskRef, progress: Progress | None = None) -> Mask:
        """Makes a mask again from its recipe.

        Raises:
            MismatchError: the recipe gives other positions on this base, or cannot give any.
        """
        recipe = dict(ref.recipe)
        name = recipe.pop("name", None)
        if not ref.rebuildable:
            raise MismatchError(
                f"the mask {ref.digest[:16]} cannot be rebuilt from its recipe {name!r}",
                hint="pull it from the hub that has it, or give its file with --mask",
            )
        try:
            mask = Mask.build(base, recipe=str(name), progress=progress, **recipe)  # type: ignore[arg-type]
        except (TypeError, UsageError) as error:
            raise MismatchError(f"the recipe of mask {ref.digest[:16]} cannot be followed ({error})") from None
        if mask.digest != ref.digest:
            raise MismatchError(
                f"the recipe gives another mask on {base.id}", expected=f"mask {ref.digest[:16]}",
                got=f"{mask.digest[:16]} on base {base.digest[:16]}", hint="it belongs to another base: give that one",
            )  # fmt: skip
        return mask

    @staticmethod
    def resolve(base: Base, ref: MaskRef, mask: Mask | None = None, progress: Progress | None = None) -> Mask:
        """``mask`` if it is the one that ``ref`` means, else the one that the recipe gives.

        Raises:
            MismatchError: neither.
        """
        if mask is None:
            return Mask.rebuild(base, ref, progress)
        if mask.digest != ref.digest:
            raise MismatchError("the delta is aligned to another mask", expected=ref.digest[:16], got=mask.digest[:16])
        mask.check_base(base)
        return mask

    def check_base(self, base: Base) -> None:
        """Raises MismatchError unless the mask was made on ``base``."""
        if base.digest == self.base.digest and base.space.size != self.n:
            raise MismatchError(
                "the mask counts parameters otherwise than the base does", expected=f"{self.n:,}",
                got=f"{base.space.size:,}", hint="open the base with the config.json that the mask was made with "
                "(tie_word_embeddings decides whether a tied tensor counts once)",
            )  # fmt: skip
        if base.digest != self.base.digest:
            raise MismatchError(
                f"the mask was made on base {self.base.id}", expected=f"base {self.base.digest[:16]}",
                got=f"{base.digest[:16]} ({base.id})", hint="build a mask on this base, or give the other base",
            )  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Writes a mask file: recipe and encoded positions, a safetensors file."""
        encoded = index_codec.encode_index(self.indices)
        document = {
            "format_version": _FORMAT_VERSION, "base": vars(self.base), "n": self.n, "k": self.k,
            "recipe": dict(self.recipe), "digest": self.digest, "codec": encoded.config,
        }  # fmt: skip
        stored = RawTensor("U8", (len(encoded.stored),), np.frombuffer(encoded.stored, np.uint8))
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        write_atomic(path := Path(path), tensorfile.dump({"index": stored}, {_KEY: text}))
        return path

    @staticmethod
    def load(path: str | Path) -> Mask:
        """Raises FormatError or IntegrityError unless ``path`` is a whole mask file."""
        path = Path(path)
        return Mask.loads(tensorfile.read_whole(path), path.name)

    @staticmethod
    def loads(data: bytes | memoryview, what: str = "the mask") -> Mask:
        tensors, metadata = tensorfile.loads(data, what)
        if set(metadata) != {_KEY} or set(tensors) != {"index"}:
            raise FormatError(f"{what} is not a mask", hint="make one with `deltahub mask build`")
        document = _document(metadata[_KEY], what)
        stored = tensors["index"].data
        indices = index_codec.decode_index(document["codec"], stored.data, document["k"], document["n"])
        mask = Mask(read_base(document["base"]), document["n"], document["recipe"], indices)
        digest.check(f"mask {what}", document["digest"], mask.digest)
        return mask


def _document(text: str, what: str) -> dict[str, Any]:
    """The JSON of a mask file, its fields there and no more; each is checked by who takes it."""
    found = strict_json(text, what)
    if not isinstance(found, dict):
        raise FormatError(what, expected="a JSON object", got=type(found).__name__)
    version = found.get("format_version")
    if type(version) is int and version > _FORMAT_VERSION:
        raise formats.newer(what, version, _FORMAT_VERSION)
    if type(version) is not int or version != _FORMAT_VERSION:
        raise FormatError(f"format of {what}", expected=_FORMAT_VERSION, got=ascii(version)[:40])
    if set(found) != _FIELDS or not is_digest(found["digest"]):
        raise FormatError(f"fields of {what}", expected=" ".join(sorted(_FIELDS)), got=ascii(sorted(found))[:120])
    if not isinstance(found["recipe"], dict) or not isinstance(found["codec"], dict):
        raise FormatError(f"recipe and codec of {what}", expected="objects")
    return found


def budget(density: float, base: Base, tensors: Sequence[SpaceTensor]) -> int:
    if not 0 < density <= 1:
        raise UsageError("density", expected="a share above 0 and up to 1, such as 0.005", got=density)
    k = round(density * base.space.size)
    room = sum(tensor.size for tensor in tensors)
    if not 0 < k <= room:
        raise UsageError(
            f"density {density} of {base.space.size:,} parameters is {k:,} values",
            expected=f"1 to {room:,} in this scope",
            hint="change the density or widen the scope",
        )
    return k
