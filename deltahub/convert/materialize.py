"""From base and delta to a standalone Hugging Face checkpoint."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from deltahub import tensorfile
from deltahub.checkpoint import Base, Progress
from deltahub.delta import Delta
from deltahub.errors import CheckpointError, UsageError
from deltahub.files import store_errors, sync_folder, write_atomic
from deltahub.fit import adapted, check_fit
from deltahub.mask import Mask
from deltahub.names import LINEAR_HEAD
from deltahub.rawtensor import RawTensor, narrow
from deltahub.tensorfile import TensorFile

_COMPANIONS = (
    "tokenizer*.json", "tokenizer*.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "spiece.model", "sentencepiece*.model", "*preprocessor_config.json", "*processor_config.json",
    "generation_config.json", "chat_template*", "sentence_bert_config.json", "LICENSE*",
)  # fmt: skip
"""What goes along from the base's folder: never weights, code, or files that have nothing to do with a model."""

HEAD_FILE = "head.safetensors"


def materialize(
    base: Base, delta: Delta, out: str | Path, *, mask: Mask | None = None, progress: Progress | None = None
) -> Path:
    """Writes a checkpoint that `from_pretrained` loads, bit-identical to the fine-tuned model.

    Shards stay as the base has them; memory is bounded by one tensor. The folder appears whole or not at all.

    transformers has no class for a task with a linear head: it becomes a checkpoint of the bare model, for
    ``AutoModel``, with the labels in its config and beside it in HEAD_FILE the head, with the pooling in that file's
    metadata; `has_own_head` tells.

    Args:
        out: a folder that does not exist yet, or is empty.
        mask: needed where its recipe cannot rebuild it.

    Raises:
        UsageError: ``out`` has files.
        MismatchError: base, mask and delta do not belong together.
        CheckpointError: the base has a link that leads out of its folder.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty", expected="a new folder", hint="give another -o")
    patch = _Patch(base, delta, mask)
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(6)}.part")
    with store_errors(out):
        temporary.mkdir(parents=True)
        try:
            _copy_companions(base, temporary)
            _write_config(base, delta, temporary)
            if has_own_head(delta):
                _write_own_head(delta, temporary)
            _write_weights(base, patch, temporary, progress)
            base.check_unchanged()
            sync_folder(temporary)
            if out.exists():
                out.rmdir()
            os.replace(temporary, out)
            sync_folder(out.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return out


def has_own_head(delta: Delta) -> bool:
    """Whether a materialized ``delta`` is the bare model and a HEAD_FILE: one linear layer on its pooled states."""
    return delta.manifest.architecture == LINEAR_HEAD


class _Patch:
    """Gives every tensor of the base as the task has it."""

    def __init__(self, base: Base, delta: Delta, mask: Mask | None) -> None:
        manifest = delta.manifest
        delta.check_base(base.ref)
        self.mask = Mask.resolve(base, manifest.mask, mask) if manifest.mask else None
        check_fit(delta, base, self.mask)
        self.base = base
        self.prefix = "" if has_own_head(delta) else manifest.backbone_prefix
        self.head = {} if has_own_head(delta) else delta.raw("head")
        self.dense = delta.raw("dense")
        self.values = delta.tensors.get("values")
        self.delta = delta
        self.adapted = set(adapted(delta))
        self.parts = {tensor.name: part for tensor, part in base.space.split(self.mask.indices)} if self.mask else {}

    def read(self, name: str) -> RawTensor:
        canonical = self.base.space.aliases.get(name, name)
        if canonical in self.dense:
            return self.dense[canonical]
        raw = self.base.read(name)
        if canonical in self.adapted:
            from deltahub.dense import materialised

            return RawTensor.of_torch(materialised(self.delta, canonical, raw.torch()))
        if canonical in self.parts and self.mask and self.values:
            part = self.parts[canonical]
            local = self.mask.indices[part] - self.base.space.by_name[canonical].offset
            same = raw.dtype == self.values.dtype
            raw.bits[local] = self.values.bits[part] if same else narrow(self.values.float32()[part], raw.dtype)
        return raw


def _copy_companions(base: Base, out: Path) -> None:
    """Never what a link out of the checkpoint leads to: it may be a secret, and the result is made to be published."""
    home = base.path.resolve()
    if home.parent.name == "snapshots":  # of the Hugging Face cache, whose links lead to its blobs
        home = home.parents[1]
    for path in sorted(base.path.iterdir()):
        if path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in _COMPANIONS):
            if not path.resolve().is_relative_to(home):
                raise CheckpointError(
                    f"{path} is a link out of its folder", expected="a file of the checkpoint",
                    hint="put a copy of the file there if it belongs to it",
                )  # fmt: skip
            shutil.copyfile(path, out / path.name)


def _write_config(base: Base, delta: Delta, out: Path) -> None:
    config: dict[str, Any] = dict(base.config)
    manifest = delta.manifest
    if manifest.architecture and not has_own_head(delta):
        config["architectures"] = [manifest.architecture]
    if manifest.labels:
        config["id2label"] = {str(number): label for number, label in enumerate(manifest.labels)}
        config["label2id"] = {label: number for number, label in enumerate(manifest.labels)}
    if manifest.kind == "multi-label-classification":
        config["problem_type"] = "multi_label_classification"
    if manifest.kind == "regression":
        config |= {"problem_type": "regression", "id2label": {"0": "value"}, "label2id": {"value": 0}}
    if config:
        write_atomic(out / "config.json", [json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"])


def _write_own_head(delta: Delta, out: Path) -> None:
    pooling = delta.manifest.inputs.get("pooling")
    metadata = {"format": "pt"} | ({"pooling": pooling} if isinstance(pooling, str) else {})
    write_atomic(out / HEAD_FILE, tensorfile.dump(delta.raw("head"), metadata))


def _write_weights(base: Base, patch: _Patch, out: Path, progress: Progress | None) -> None:
    files = base.files
    total = sum(file.byte_size for file in files)
    done = 0
    names = {file.path.name: list(file.specs) for file in files}
    where = {patch.prefix + name: file for file, members in names.items() for name in members}
    where |= dict.fromkeys(patch.head, "model-head.safetensors" if len(files) > 1 else files[0].path.name)
    for file in files:
        extra = patch.head if len(files) == 1 else {}
        write_atomic(_weights_path(out, file, files), _file(file, patch, extra))
        done += file.byte_size
        if progress:
            progress(done, total)
    if len(files) > 1:
        if patch.head:
            write_atomic(out / "model-head.safetensors", tensorfile.dump(patch.head, {"format": "pt"}))
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_atomic(out / "model.safetensors.index.json", [json.dumps(index, indent=1, sort_keys=True).encode()])


def _weights_path(out: Path, file: TensorFile, files: tuple[TensorFile, ...]) -> Path:
    return out / (file.path.name if len(files) > 1 else "model.safetensors")


def _file(file: TensorFile, patch: _Patch, extra: dict[str, RawTensor]) -> Iterator[bytes | memoryview]:
    """One weights file, tensor by tensor, in the canonical order of the new names."""
    shapes = {patch.prefix + name: (spec.dtype, spec.shape) for name, spec in file.specs.items()}
    shapes |= {name: (raw.dtype, raw.shape) for name, raw in extra.items()}
    yield tensorfile.header(shapes, {"format": "pt"})
    for name in tensorfile.canonical_order(shapes):
        yield (extra[name] if name in extra else patch.read(name.removeprefix(patch.prefix))).data.data
