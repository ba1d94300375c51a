"""Four small tasks out of docstrings that are already installed: nothing is downloaded.

| task | what is asked of the first sentence of a docstring |
|---|---|
| library | which library is it from: the standard library, NumPy or PyTorch |
| object | what does it describe: a class, a function or a method |
| topic | what is it about: concurrency, data, files, language, mathematics, network, neural networks or text |

The names of the object and of the library are taken out of the text, so that no answer stands in the question.

| task | what is asked of each word of a sentence anywhere in a docstring |
|---|---|
| markup | did its author mark it as code |

The marks are taken out. The rows depend on the installed versions of Python, NumPy and PyTorch; the same versions give
the same files.

usage: python tools/demo_tasks.py FOLDER
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

CLASSIFIED = ("library", "object", "topic")
TASKS = (*CLASSIFIED, "markup")
MOST_PER_CLASS = {"library": 560, "object": 560, "topic": 210}
MOST_SENTENCES = 1200
SPLITS = ("train", "validation", "test")

# module -> topic; None where a module is of no topic of its own
_STDLIB: dict[str | None, str] = {
    "concurrency": "asyncio asyncio.base_events asyncio.events asyncio.locks asyncio.queues asyncio.streams "
    "asyncio.tasks concurrent.futures multiprocessing.connection multiprocessing.context multiprocessing.managers "
    "multiprocessing.pool multiprocessing.queues queue sched selectors signal subprocess threading",
    "data": "array bisect collections copy csv dataclasses dbm.dumb enum graphlib heapq json marshal pickle "
    "pickletools plistlib shelve sqlite3 struct weakref xml.dom.minidom xml.etree.ElementTree",
    "files": "bz2 fileinput filecmp fnmatch glob gzip io lzma mimetypes mmap os pathlib shutil stat tarfile tempfile "
    "zipfile zlib zipimport posixpath",
    "language": "abc ast bdb cmd code codeop compileall contextlib cProfile dis doctest functools gc importlib.abc "
    "importlib.machinery importlib.metadata importlib.resources importlib.util inspect keyword linecache modulefinder "
    "operator pdb pkgutil profile pstats py_compile pyclbr runpy symtable sys timeit tokenize trace traceback "
    "tracemalloc types typing unittest unittest.mock warnings",
    "mathematics": "cmath colorsys decimal fractions hashlib hmac math numbers random secrets statistics",
    "network": "email.message email.mime.text email.parser email.policy email.utils ftplib http.client http.cookiejar "
    "http.cookies http.server imaplib ipaddress poplib smtplib socket socketserver ssl "
    "urllib.parse urllib.request urllib.robotparser urllib.response uuid wsgiref.handlers wsgiref.headers "
    "wsgiref.simple_server xmlrpc.client xmlrpc.server",
    "text": "base64 binascii codecs configparser difflib email.charset email.header encodings gettext html html.parser "
    "locale logging optparse pprint quopri re reprlib shlex string stringprep textwrap unicodedata argparse",
    None: "calendar datetime time zoneinfo platform errno getpass itertools",
}
_NUMPY: dict[str | None, str] = {
    "mathematics": "numpy.fft numpy.linalg numpy.polynomial.polynomial numpy.polynomial.chebyshev numpy.random",
    "text": "numpy.strings numpy.char",
    None: "numpy numpy.ma numpy.rec numpy.testing numpy.lib.stride_tricks numpy.lib.recfunctions numpy.ctypeslib",
}
_TORCH: dict[str | None, str] = {
    "neural networks": "torch.nn.functional torch.nn.init torch.nn.modules torch.nn.utils torch.optim "
    "torch.optim.lr_scheduler torch.optim.swa_utils",
    "mathematics": "torch.linalg torch.fft torch.special torch.distributions",
    "concurrency": "torch.multiprocessing torch.futures",
    None: "torch torch.autograd torch.cuda torch.utils.data torch.fx torch.jit torch.profiler torch.nn.parallel "
    "torch.nn.attention torch.sparse torch.library torch.package torch.hub torch.func torch.autograd.functional",
}
_LIBRARIES = {"python": _STDLIB, "numpy": _NUMPY, "torch": _TORCH}
_LEAKS = re.compile(r"\b(numpy|np|py ?torch|torch|python\d*|stdlib|ndarrays?|tensors?)\b", re.IGNORECASE)
_MARKED = re.compile(r"(?::[a-z:]+:)?(?:``~?([^`]+)``|`~?([^`]+)`)")
_OTHER_MARKS = re.compile(r":(math|ref|doc|term):|`_|[<>*|{}\\]")
_KIND_LEAKS = re.compile(r"\b(class(es)?|functions?|methods?|subclass(es)?)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """A documented object: its first sentence and what is known of it."""

    name: str
    sentence: str
    library: str
    kind: str
    topic: str | None


@dataclass(frozen=True)
class Words:
    """A sentence, a word at a time, each ``code`` or ``prose``."""

    words: tuple[str, ...]
    labels: tuple[str, ...]


def items() -> list[Item]:
    """Every documented public object of the listed modules, once, in the order of the lists."""
    found = []
    for library, topic, name, kind, doc in _docs():
        if sentence := first_sentence(doc):
            found.append(Item(name, sentence, library, kind, topic))
    return found


def marked_sentences() -> list[Words]:
    """Sentences of 5 to 30 words, some of which, but no more than half, are marked as code; each once."""
    found = {}
    for *_, doc in _docs():
        for paragraph in doc.split("\n\n"):
            if any(line.startswith((" ", ">>>", "..", "-", "*")) for line in paragraph.splitlines()):
                continue  # code, lists and directives
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
                made = words_of(sentence)
                if made and 5 <= len(made.words) <= 30 and 0 < made.labels.count("code") <= len(made.words) / 2:
                    found[" ".join(made.words)] = made
    return [found[text] for text in sorted(found, key=_hash)][:MOST_SENTENCES]


def words_of(sentence: str) -> Words | None:
    """The words of a sentence without its marks; None where it is no plain sentence or is marked in other ways."""
    if not re.match(r"[A-Z][a-z]* .*\.$", sentence) or _OTHER_MARKS.search(sentence):
        return None
    text, code, at = "", "", 0  # code: a letter for each character of text
    for match in _MARKED.finditer(sentence):
        plain, inside = sentence[at : match.start()], match[1] or match[2]
        text, code, at = text + plain + inside, code + "p" * len(plain) + "c" * len(inside), match.end()
    text, code = text + sentence[at:], code + "p" * len(sentence[at:])
    if "`" in text:
        return None
    found = list(re.finditer(r"\S+", text))
    labels = tuple("code" if "c" in code[word.start() : word.end()] else "prose" for word in found)
    return Words(tuple(word[0] for word in found), labels)


def first_sentence(doc: str) -> str:
    """The first sentence in words, without a leading signature; empty where there is none."""
    paragraphs = [" ".join(part.split()) for part in doc.split("\n\n")]
    prose = next((part for part in paragraphs if not _is_signature(part)), "")
    prose = re.sub(r":[a-z:]+:`~?([^`<]*)[^`]*`", r"\1", prose)
    sentence = re.split(r"(?<=[.!?;])\s|\s--\s|::", prose, maxsplit=1)[0]
    return sentence.strip(" .`*") if len(sentence.split()) >= 3 else ""


def hide(item: Item, *, leaks: re.Pattern[str]) -> str:
    """The sentence without its object's name, its library's names and whatever ``leaks`` matches."""
    parts = {part for part in re.split(r"[._]+", item.name) if len(part) > 2}
    names = sorted({item.name, item.name.rpartition(".")[2], *parts}, key=len, reverse=True)
    text = re.sub(r"\b(" + "|".join(map(re.escape, names)) + r")\b", " ", item.sentence, flags=re.IGNORECASE)
    text = re.sub(r"[`*{}\\]", " ", leaks.sub(" ", text))
    return " ".join(text.split()).strip(" .,:;-")


def rows(task: str, found: list[Item]) -> list[tuple[str, str]]:
    """(text, label) pairs of one of CLASSIFIED, no text twice, none with two answers, MOST_PER_CLASS of a class."""
    answers: dict[str, set[str]] = defaultdict(set)
    for item in found:
        label = {"library": item.library, "object": item.kind, "topic": item.topic}[task]
        text = hide(item, leaks=_KIND_LEAKS if task == "object" else _LEAKS)
        if label and len(text.split()) >= 3:
            answers[text].add(label)
    by_label: dict[str, list[str]] = defaultdict(list)
    for text in sorted(answers, key=_hash):
        if len(answers[text]) == 1:
            by_label[next(iter(answers[text]))].append(text)
    return [(text, label) for label in sorted(by_label) for text in by_label[label][: MOST_PER_CLASS[task]]]


def write_tasks(folder: str | Path) -> list[Path]:
    """Writes ``TASK/{train,validation,test}.jsonl`` under ``folder``; returns the tasks' folders.

    It works in a fresh interpreter: libraries that are loaded already may have patched the modules that are looked at.
    """
    subprocess.run([sys.executable, __file__, str(folder)], check=True, stdout=subprocess.PIPE)
    return [Path(folder) / task for task in TASKS]


def _write(folder: Path) -> list[Path]:
    """A text's hash decides its split: 76 % training, 12 % validation, 12 % test."""
    found = items()
    tasks: dict[str, dict[str, dict[str, object]]] = {
        task: {text: {"text": text, "label": label} for text, label in rows(task, found)} for task in CLASSIFIED
    }
    tasks["markup"] = {" ".join(item.words): vars(item) for item in marked_sentences()}
    for task, by_text in tasks.items():
        (folder / task).mkdir(parents=True, exist_ok=True)
        lines: dict[str, list[str]] = {split: [] for split in SPLITS}
        for text in sorted(by_text, key=_hash):
            share = _hash("split " + text) / 2**32
            split = "train" if share < 0.76 else "validation" if share < 0.88 else "test"
            lines[split].append(json.dumps(by_text[text], ensure_ascii=False) + "\n")
        for split in SPLITS:
            (folder / task / f"{split}.jsonl").write_text("".join(lines[split]), encoding="utf-8")
    return [folder / task for task in tasks]


def _docs() -> Iterator[tuple[str, str | None, str, str, str]]:
    """(library, topic, name, kind, docstring) of everything documented in the listed modules, once."""
    seen: set[int] = set()
    for library, topics in _LIBRARIES.items():
        for topic, modules in topics.items():
            for module in _modules(modules.split()):
                for name, kind, thing in _documented(module):
                    if id(thing) not in seen:
                        seen.add(id(thing))
                        yield library, topic, name, kind, inspect.getdoc(thing) or ""


def _modules(names: list[str]) -> Iterator[ModuleType]:
    for name in names:
        try:
            yield importlib.import_module(name)
        except ImportError:  # removed in a later Python, or an optional part of a build
            continue


def _documented(module: ModuleType) -> Iterator[tuple[str, str, object]]:
    """(dotted name, kind, object) of what the module itself offers."""
    public = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    for name in sorted(set(public)):
        thing = inspect.getattr_static(module, name, None)
        if not _belongs(thing, module):
            continue
        if inspect.isclass(thing):
            yield name, "class", thing
            for method, member in sorted(vars(thing).items()):
                if not method.startswith("_") and inspect.isroutine(member) and not isinstance(member, staticmethod):
                    yield f"{name}.{method}", "method", member
        elif callable(thing):
            yield name, "function", thing


def _belongs(thing: object, module: ModuleType) -> bool:
    home = getattr(thing, "__module__", None) or module.__name__
    return isinstance(home, str) and home.lstrip("_").split(".")[0] in (module.__name__.split(".")[0], "io", "posix")


def _is_signature(paragraph: str) -> bool:
    return not paragraph or re.match(r"[\w.]+\(.*?\)(\s*->.*)?$", paragraph) is not None


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/demo_tasks.py FOLDER")
    for path in _write(Path(sys.argv[1])):
        print(path)


if __name__ == "__main__":
    main()
