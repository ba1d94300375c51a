"""Finding a checkpoint's files on disk or on the Hugging Face Hub, refusing what must not or cannot be read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltahub.digest import is_digest
from deltahub.errors import CheckpointError, DeltahubError, FormatError
from deltahub.files import write_atomic
from deltahub.tensorfile import TensorFile, read_json

_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
_QUANTISED = re.compile(r".*\.(qweight|qzeros|absmax|quant_map|weight_scale(_inv)?|SCB|weight_packed|quant_state.*)")
_WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "merges.txt", "vocab.*"]
_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class CheckpointFiles:
    """Open weight files of one checkpoint, and which holds each tensor."""

    id: str
    revision: str | None
    folder: Path
    config: dict[str, Any]
    files: tuple[TensorFile, ...]
    by_tensor: dict[str, TensorFile]

    def stats(self) -> list[list[int]]:
        """Device, inode, size and both times of every open file: what changes when one is written to."""
        found = [file.stat() for file in self.files]
        return sorted([s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in found)


def locate(source: str | Path, revision: str | None) -> CheckpointFiles:
    """Raises CheckpointError unless ``source`` leads to safetensors files that hold plain floating-point weights."""
    path = Path(source)
    if os.path.exists(path):  # Path.exists raises for a name that is too long
        folder = path if path.is_dir() else path.parent
        identity, revision = _hub_identity(folder) or (_local_id(folder.resolve()), None)
    elif _MODEL_ID.fullmatch(str(source)):
        identity = str(source)
        folder = path = _download(identity, revision)
        revision = (_hub_identity(folder) or ("", revision))[1]
    else:
        raise CheckpointError(f"no checkpoint at {source}", expected="a folder, a .safetensors file or a model id")
    config = _config(folder)
    files = tuple(_open(file) for file in _weight_files(path))
    by_tensor = {name: file for file in files for name in file.specs}
    if len(by_tensor) != sum(len(file.specs) for file in files):
        raise CheckpointError(f"{path} has a tensor in two shards", hint="remove the shards that do not belong to it")
    if path.is_dir() and (path / _INDEX).exists() and len(files) > 1:
        _check_index(path / _INDEX, by_tensor)
    _refuse_quantised(identity, config, by_tensor)
    return CheckpointFiles(identity, revision, folder, config, files, by_tensor)


def _hub_identity(folder: Path) -> tuple[str, str] | None:
    """Id and commit of a snapshot folder in the Hugging Face cache."""
    parts = folder.absolute().parts
    if len(parts) >= 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/"), parts[-1]
    return None


def _local_id(folder: Path) -> str:
    """The folder's name; with its parent's where that says nothing."""
    plain = re.fullmatch(r"(model|base|checkpoint|weights|ckpt|snapshot)s?[-_]?\d*", folder.name, re.IGNORECASE)
    return f"{folder.parent.name}/{folder.name}" if plain else folder.name


def _download(identity: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(identity, revision=revision, allow_patterns=_WANTED))
    except LocalEntryNotFoundError:
        problem = f"{identity} is no folder here, not in the local cache, and the Hugging Face Hub cannot be reached"
    except HfHubHTTPError as error:
        reason = f"{error.response.status_code}, {str(error).splitlines()[-1][:160]}"
        problem = f"the Hugging Face Hub refused {identity} ({reason})"
    except (OSError, ValueError) as error:
        problem = f"cannot fetch {identity} ({str(error)[:160]})"
    raise CheckpointError(problem, hint="check the name and revision, log in for private models, or give a folder")


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        return {}
    try:
        config = read_json(path)
    except FormatError as error:
        raise CheckpointError(str(error), hint="fetch the checkpoint again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}", expected="a JSON object")
    return config


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix != ".safetensors":
            raise _refuse_pickle(path)
        return [path]
    if (single := path / "model.safetensors").exists():
        return [single]
    if (index := path / _INDEX).exists():
        return _shards(index)
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        raise CheckpointError(
            f"{path} has {len(found)} safetensors files and no {_INDEX}", hint="name one of them, or add the index"
        )
    if pickles := [file for pattern in _PICKLES for file in sorted(path.glob(pattern))]:
        raise _refuse_pickle(pickles[0])
    raise CheckpointError(f"no safetensors file in {path}", hint="is this the right folder?")


def _refuse_pickle(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a safetensors file",
        hint="pickled weights can run code when opened and are never read: load the model where you trust it and "
        "`model.save_pretrained(folder)`, which writes safetensors",
    )


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        safe = all(Path(name).name == name for name in names)
    except (FormatError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not an index of shards ({str(error)[:100]})") from None
    if not safe:
        raise CheckpointError(f"{index} names files outside its folder", hint="do not use this checkpoint")
    if missing := [name for name in names if not os.path.exists(index.parent / name)]:
        raise CheckpointError(
            f"{len(missing)} of {len(names)} shards are missing", got=f"no {missing[0]} in {index.parent}",
            hint="the download did not finish: fetch it again",
        )  # fmt: skip
    return [index.parent / name for name in names]


def _check_index(index: Path, by_tensor: dict[str, TensorFile]) -> None:
    for name, shard in read_json(index)["weight_map"].items():
        if name not in by_tensor or by_tensor[name].path.name != shard:
            raise CheckpointError(
                f"{name} is not in {shard}, where {index.name} says", hint="fetch the checkpoint again"
            )


def _open(path: Path) -> TensorFile:
    try:
        return TensorFile(path)
    except FormatError as error:
        raise CheckpointError(str(error)) from None


def _refuse_quantised(identity: str, config: dict[str, Any], by_tensor: dict[str, TensorFile]) -> None:
    dtypes = {name: file.specs[name].dtype for name, file in by_tensor.items()}
    packed = [name for name in dtypes if _QUANTISED.fullmatch(name) or dtypes[name].startswith("F8")]
    if config.get("quantization_config") or packed:
        raise CheckpointError(
            f"{identity} is quantised", expected="fp32, fp16 or bf16 parameters", got=packed[0] if packed else None,
            hint="use the unquantised checkpoint it was made from; quantise when serving",
        )  # fmt: skip
    if wide := [name for name, dtype in dtypes.items() if dtype in ("F64", "C64")]:
        raise CheckpointError(
            f"{wide[0]} of {identity}", expected="fp32, fp16 or bf16", got=dtypes[wide[0]],
            hint="convert it: `model.float().save_pretrained(folder)`",
        )  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """Remembers a digest for files that have not been touched since, by device, inode, size and both times."""

    key: str | None
    path: Path | None

    @staticmethod
    def of(stats: list[list[int]], cache: Path | None) -> Identity:
        # A file written within the clock's grain of a stat could change again unseen, so a fresh one is not remembered.
        if cache is None or time.time_ns() - max(max(row[3:]) for row in stats) < 2_000_000_000:
            return Identity(None, None)
        key = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
        return Identity(key, cache / "bases" / key)

    def recall(self) -> str | None:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if self.path and is_digest(text := self.path.read_text()):
                return text
        return None

    def remember(self, digest: str) -> None:
        """Best effort: without a writable cache the next open hashes again."""
        if self.path:
            with contextlib.suppress(OSError, DeltahubError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(self.path, [digest.encode()])
