"""A base's own sentence embeddings, as the files that sentence-transformers left in its folder describe them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltahub.delta import Delta
from deltahub.errors import CheckpointError, FormatError
from deltahub.manifest import Manifest, Plain
from deltahub.tensorfile import strict_json

if TYPE_CHECKING:
    from deltahub.checkpoint import Base

_POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""One switch for each pooling, as sentence-transformers wrote it before ``pooling_mode``."""
_FOLDER = re.compile(r"\w[\w.-]*", re.ASCII)
_MOST_BYTES = 1 << 20
_HINT = "fetch the checkpoint again, or remove its modules.json to embed with the usual pooling"


def base_task(base: Base) -> Delta:
    """The task of the base itself: no values, of kind ``embeddings``, named as the base is.

    Pooling, normalisation and the length to cut to are what ``modules.json`` and its companions say. A base without
    them is pooled as `pooling.default_pooling` says and normalised. Prompts are left to whoever asks.

    It is made for a `TaskModel`, not for a hub: the name of a base may be none of a task. Equal bases under one name
    give equal digests.

    Raises:
        CheckpointError: these files are damaged, or describe what is not done here (another pooling, more layers); or
            the base has no usable config or tokenizer.
    """
    inputs = _described(base) if (base.path / "modules.json").exists() else _usual(base)
    return Delta(Manifest(base.id, "embeddings", base.ref, inputs=inputs), {})


def _usual(base: Base) -> dict[str, Plain]:
    from deltahub.pooling import default_pooling

    return {"pooling": default_pooling(_config(base)), "normalize": True}


def _described(base: Base) -> dict[str, Plain]:
    modules = _read(base, "modules.json")
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise _odd(base, "modules.json", "a list of modules", type(modules).__name__)
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise _odd(base, "modules.json", "Transformer, Pooling and perhaps Normalize", ", ".join(kinds) or "nothing")
    if modules[0].get("path", "") != "":
        raise _odd(base, "modules.json", "the Transformer in the folder itself", modules[0]["path"])
    folder = modules[1].get("path")
    if not isinstance(folder, str) or not _FOLDER.fullmatch(folder):
        raise _odd(base, "modules.json", "a folder for Pooling", folder)
    pooling = _pooling(base, f"{folder}/config.json")
    return {"pooling": pooling, "normalize": "Normalize" in kinds, **_length(base)}


def _pooling(base: Base, file: str) -> str:
    config = _object(base, file)
    mode = config.get("pooling_mode", [name for switch, name in _MODES.items() if config.get(switch)] or "mean")
    if isinstance(mode, list) and len(mode) == 1:
        mode = mode[0]
    if not isinstance(mode, str) or mode not in _POOLINGS:
        raise _odd(base, file, f"one of {', '.join(_POOLINGS)}", mode)
    return _POOLINGS[mode]


def _length(base: Base) -> dict[str, Plain]:
    """The length to cut to where it is less than the model takes."""
    from deltahub.heads import load_tokenizer, longest_input, shortest_input

    file = "sentence_bert_config.json"
    config = _object(base, file) if (base.path / file).exists() else {}
    tokenizer = load_tokenizer(base)
    if config.get("do_lower_case") and tokenizer("A")["input_ids"] != tokenizer("a")["input_ids"]:
        raise _odd(base, file, "a tokenizer that ignores case, or do_lower_case false", "do_lower_case true")
    length = config.get("max_seq_length")
    if length is None or (type(length) is int and length >= longest_input(tokenizer, _config(base))):
        return {}
    if type(length) is not int or length < shortest_input(tokenizer):
        raise _odd(base, file, "a max_seq_length that has room for a token", length)
    return {"max_length": length}


def _config(base: Base) -> Any:
    from transformers import AutoConfig

    from deltahub.backbone import quiet

    try:
        with quiet():
            return AutoConfig.from_pretrained(base.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 (an odd config.json makes transformers fail in any way there is)
        raise CheckpointError(
            f"transformers cannot read the config.json of {base.id} ({' '.join(str(error).split())[:160]})",
            hint="restore the model's config.json",
        ) from None


def _object(base: Base, file: str) -> dict[str, Any]:
    found = _read(base, file)
    if not isinstance(found, dict):
        raise _odd(base, file, "a JSON object", type(found).__name__)
    return found


def _read(base: Base, file: str) -> Any:
    path = Path(base.path, file)
    try:
        with path.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise _odd(base, file, f"at most {_MOST_BYTES:,} bytes", "more")
        return strict_json(data, str(path))
    except OSError as error:
        raise CheckpointError(f"{file} of {base.id} cannot be read ({error.strerror})", hint=_HINT) from None
    except (FormatError, UnicodeDecodeError) as error:
        raise CheckpointError(str(error), hint=_HINT) from None


def _odd(base: Base, file: str, expected: str, got: object) -> CheckpointError:
    return CheckpointError(f"{file} of {base.id}", expected=expected, got=ascii(got)[:80], hint=_HINT)
