"""The base: a safetensors checkpoint opened lazily, its parameter space, and the digest that it is known by."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from deltahub import checkpoint_files
from deltahub.checkpoint_files import CheckpointFiles, Identity
from deltahub.errors import CheckpointError
from deltahub.manifest import BaseRef
from deltahub.rawtensor import FLOATS, ITEMSIZE, RawTensor, narrow
from deltahub.space import ParameterSpace, Positions, SpaceTensor, role
from deltahub.tensorfile import TensorFile, TensorSpec

CHUNK = 1 << 19
"""Bytes read at a time: a chunk and what is computed from it stay in a core's second-level cache."""
_INFINITY = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_MAGNITUDE: dict[str, Any] = {"F32": np.uint32(0x7FFFFFFF), "F16": np.uint16(0x7FFF), "BF16": np.uint16(0x7FFF)}

Visit = Callable[[SpaceTensor, int, npt.NDArray[Any]], None]
"""Called with a tensor of the space, the offset of a chunk in it, and |w| of that chunk as unsigned bits of its dtype.
The array is only valid during the call. Calls come from several threads."""
T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


class Base:
    """A pre-trained checkpoint. Opening reads headers only; nothing from it is ever executed.

    Attributes:
        id: hub id, or the folder's name; for people.
        revision: commit of the hub's repository, where it came from one.
        path: folder with the weights, config and tokenizer.
        config: config.json as a dictionary; empty where there is none.
        space: the parameter space.
    """

    def __init__(self, files: CheckpointFiles, cache: Path | None) -> None:
        self.id = files.id
        self.revision = files.revision
        self.path = files.folder
        self.config = files.config
        self._files = files
        self._stats = files.stats()
        self._identity = Identity.of(self._stats, cache)
        self.space = _space(self)

    @staticmethod
    def open(source: str | Path, revision: str | None = None, *, cache: Path | None = None) -> Base:
        """Opens a folder, a safetensors file, a sharded checkpoint, or a Hugging Face model id.

        Args:
            source: existing path, else a model id that is fetched into (or found in) the Hugging Face cache.
            revision: branch, tag or commit of a model id.
            cache: folder that remembers digests by file identity; ``~/.cache/deltahub`` by default.

        Raises:
            CheckpointError: missing, pickled, quantised or damaged; the message says what to do.
        """
        if cache is None:
            with contextlib.suppress(RuntimeError):  # no home: every opening hashes anew
                cache = Path("~/.cache/deltahub").expanduser()
        return Base(checkpoint_files.locate(source, revision), cache)

    @cached_property
    def digest(self) -> str:
        """sha256 over name, dtype, shape and content of every tensor; instant when these very files were seen before.

        Raises:
            CheckpointError: a parameter is NaN or infinite.
        """
        return self._identity.recall() or self._hash(None, (), None)

    def check_unchanged(self) -> None:
        """Raises CheckpointError if a file was written to since the base was opened: what was read may be of both."""
        if self._files.stats() != self._stats:
            raise CheckpointError(
                f"the files of {self.id} were changed while they were being read", hint="open the base again"
            )

    @property
    def ref(self) -> BaseRef:
        return BaseRef(self.digest, self.id, self.revision)

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """Every tensor in the files, tied copies and integer buffers included."""
        return {name: file.specs[name] for name, file in self._files.by_tensor.items()}

    @property
    def files(self) -> tuple[TensorFile, ...]:
        return self._files.files

    def read(self, name: str) -> RawTensor:
        """One tensor's bytes, by its name in the files."""
        return self._files.by_tensor[name].read(name)

    def gather(self, positions: Positions) -> RawTensor:
        """The base's own parameters at ascending ``positions`` (k,), in the widest dtype among them."""
        dtype = self.space.widest(positions)
        values = np.empty(len(positions), np.uint32 if dtype == "F32" else np.uint16)
        for tensor, part in self.space.split(positions):
            raw = self.read(tensor.name)
            local = positions[part] - tensor.offset
            same = raw.dtype == dtype
            values[part] = raw.bits[local] if same else narrow(raw.float32()[local], dtype)
        return RawTensor.of_bits(dtype, values.shape, values)

    def sample(self, tensor: SpaceTensor, runs: int, length: int) -> npt.NDArray[Any]:
        """|w| as unsigned bits of up to ``runs`` evenly spread runs of ``length`` neighbours."""
        spec = self.specs[tensor.name]
        item = ITEMSIZE[spec.dtype]
        runs = min(runs, -(-tensor.size // length))
        parts = []
        for start in np.linspace(0, max(0, tensor.size - length), runs).astype(np.int64).tolist():
            part = np.empty(min(length, tensor.size - start), _uint(spec.dtype))
            self._files.by_tensor[tensor.name].read_into(spec.start + start * item, part.view(np.uint8).data)
            parts.append(part & _MAGNITUDE[spec.dtype])
        return np.concatenate(parts)

    def scan(self, tensors: Sequence[SpaceTensor], visit: Visit, progress: Progress | None = None) -> None:
        """Shows every chunk of ``tensors`` to ``visit``; takes the base digest in the same read if it is unknown."""
        if "digest" in self.__dict__ or self._identity.recall():
            tally = _Tally(progress, sum(tensor.size * ITEMSIZE[tensor.dtype] for tensor in tensors))
            _in_threads(tensors, lambda tensor: self._read_through(tensor, visit, None, tally))
        else:
            self.__dict__["digest"] = self._hash(visit, tensors, progress)

    def _hash(self, visit: Visit | None, tensors: Sequence[SpaceTensor], progress: Progress | None) -> str:
        wanted = {tensor.name for tensor in tensors}
        specs = self.specs
        hashes = {name: hashlib.sha256() for name in specs}
        tally = _Tally(progress, sum(spec.end - spec.start for spec in specs.values()))

        def job(name: str) -> None:
            tensor = self.space.by_name.get(name) or _outside_space(specs[name])
            self._read_through(tensor, visit if name in wanted else None, hashes[name], tally)

        largest_first = sorted(specs, key=lambda name: specs[name].start - specs[name].end)
        _in_threads(largest_first, job)
        base = hashlib.sha256(b"deltahub base 1\n")
        for name in sorted(specs):
            row = [name, specs[name].dtype, list(specs[name].shape), hashes[name].hexdigest()]
            base.update(json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
        self._identity.remember(base.hexdigest())
        return base.hexdigest()

    def _read_through(self, tensor: SpaceTensor, visit: Visit | None, sha: Any, tally: _Tally) -> None:
        """One tensor chunk by chunk: hashed if ``sha``, checked for NaN while hashed, shown to ``visit`` if there."""
        file = self._files.by_tensor[tensor.name]
        spec = file.specs[tensor.name]
        buffer = np.empty(min(CHUNK, spec.end - spec.start), np.uint8)
        floats = spec.dtype in FLOATS
        magnitudes: npt.NDArray[Any] = np.empty(len(buffer) // ITEMSIZE[spec.dtype] if floats else 0, _uint(spec.dtype))
        for start in range(spec.start, spec.end, CHUNK):
            chunk = buffer[: min(CHUNK, spec.end - start)]
            file.read_into(start, chunk.data)
            if sha is not None:
                sha.update(chunk.data)
            if floats:
                words = chunk.view(magnitudes.dtype)
                bits = np.bitwise_and(words, _MAGNITUDE[spec.dtype], out=magnitudes[: len(words)])
                if sha is not None and int(bits.max()) >= _INFINITY[spec.dtype]:
                    raise _not_finite(self, spec)
                if visit is not None:
                    visit(tensor, (start - spec.start) // magnitudes.itemsize, bits)
            tally.add(len(chunk))


class _Tally:
    """Bytes done by all threads, told to ``progress``."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress = progress
        self.total = total
        self.done = 0

    def add(self, size: int) -> None:
        self.done += size  # a lost update between threads costs a progress bar one chunk
        if self.progress:
            self.progress(min(self.done, self.total), self.total)


def _in_threads(items: Iterable[T], job: Callable[[T], None]) -> None:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        running = [pool.submit(job, item) for item in items]
        try:
            for future in running:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _space(base: Base) -> ParameterSpace:
    specs = base.specs
    aliases = _tied(base, specs)
    tensors = []
    offset = 0
    for name in sorted(specs):
        if (spec := specs[name]).dtype in FLOATS and name not in aliases:
            tensors.append(SpaceTensor(name, spec.dtype, spec.shape, offset, spec.size))
            offset += spec.size
    if not tensors:
        raise CheckpointError(f"{base.id} has no floating-point tensor", hint="is this the right folder?")
    return ParameterSpace(tuple(tensors), aliases)


def _tied(base: Base, specs: dict[str, TensorSpec]) -> dict[str, str]:
    """Copies of one embedding under several names (T5's shared, encoder, decoder and head), unless the config unties.

    Only embeddings and heads of two dimensions are compared: equal content elsewhere (norms of ones) is no tie.
    """
    if base.config.get("tie_word_embeddings") is False:
        return {}
    groups: dict[tuple[object, ...], list[str]] = {}
    for name in sorted(specs):
        spec = specs[name]
        if spec.dtype in FLOATS and len(spec.shape) == 2 and role(name, spec.shape) in ("embedding", "head"):
            groups.setdefault((spec.dtype, spec.shape), []).append(name)
    aliases = {}
    for names in groups.values():
        kept: dict[bytes, str] = {}
        for name in names if len(names) > 1 and _start_alike(base, names) else ():
            content = hashlib.sha256(base.read(name).data.data).digest()
            if (first := kept.setdefault(content, name)) != name:
                aliases[name] = first
    return aliases


def _start_alike(base: Base, names: Sequence[str]) -> bool:
    """Whether any two begin with the same bytes: spares most bases the reading of their largest tensors."""
    starts = set()
    for name in names:
        spec = base.specs[name]
        start = bytearray(min(1 << 12, spec.end - spec.start))
        base._files.by_tensor[name].read_into(spec.start, memoryview(start))
        starts.add(bytes(start))
    return len(starts) < len(names)


def _outside_space(spec: TensorSpec) -> SpaceTensor:
    return SpaceTensor(spec.name, spec.dtype, spec.shape, -1, spec.size)


def _uint(dtype: str) -> type:
    return np.uint32 if ITEMSIZE[dtype] == 4 else np.uint16


def _not_finite(base: Base, spec: TensorSpec) -> CheckpointError:
    raw = base.read(spec.name)
    bad = int(np.count_nonzero((raw.bits & _MAGNITUDE[spec.dtype]) >= _INFINITY[spec.dtype]))
    return CheckpointError(
        f"{spec.name} of {base.id} has {bad} NaN or infinite parameters",
        expected="finite parameters",
        hint="the checkpoint is damaged or its training diverged: fetch it again, or mend the tensor and save it anew",
    )
