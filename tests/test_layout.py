"""Rules of the house: which way imports run, what may be read, what must not be there."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

PACKAGE = Path(__file__).parents[1] / "deltahub"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {"errors", "names"},
    {"digest", "memory"},
    {"files", "rawtensor", "keys", "signing"},
    {"tensorfile", "formats", "sealed", "fields"},
    {"codecs", "stores", "manifest", "space"},
    {"checkpoint_files", "checkpoint", "selection", "mask", "delta", "fit", "records", "rounding"},
    {"backbone", "binding", "layout", "dense", "resident", "heads"}
    | {"pooling", "linear_head", "shared_head", "skeletons", "tokenizing", "encoding", "answers", "task_model"}
    | {"sentences"},
    {"mixing"},
    {"parallel", "presence"},
    {"hub", "changes", "pushing", "versions", "garbage", "verification", "report", "card"}
    | {"signatures", "repair", "verified"},
    {"transfer", "syncing", "sync_plan", "tuning", "convert", "merging", "compare", "predict", "replies", "client"}
    | {"sync_signatures", "sync_group"},
    {"cli"},
]
"""From the bottom up: a module imports from its own layer or from one below."""


def module(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level(name: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if name in layer)


def imports(tree: ast.AST, *, runtime: bool) -> list[str]:
    """Imported modules; ``runtime`` leaves out what only type checkers see."""
    skipped = set()
    if runtime:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                skipped |= {id(inner) for inner in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


@pytest.mark.parametrize(
    "path", [file for file in FILES if file.name != "__init__.py" or file.parent != PACKAGE], ids=str
)
def test_imports_run_one_way(path):
    used = {
        name.split(".")[1]
        for name in imports(ast.parse(path.read_text()), runtime=True)
        if name.startswith("deltahub.")
    }
    used = {name for name in used if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()}
    assert {name for name in used if level(name) > level(module(path))} == set()


@pytest.mark.parametrize("path", FILES, ids=str)
def test_only_the_command_line_reads_the_environment(path):
    text = path.read_text()
    if module(path) != "cli":
        assert "environ" not in text
        assert "getenv" not in text


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_that_could_run_code_from_data(path):
    tree = ast.parse(path.read_text())
    assert {"pickle", "ray", "marshal", "shelve"}.isdisjoint(
        name.split(".")[0] for name in imports(tree, runtime=False)
    )
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert {"eval", "exec", "torch.load", "compile", "__import__"}.isdisjoint(called)


def test_codecs_and_stores_need_no_torch():
    for folder in ("codecs", "stores"):
        for path in (PACKAGE / folder).glob("*.py"):
            assert "torch" not in {name.split(".")[0] for name in imports(ast.parse(path.read_text()), runtime=False)}


@pytest.mark.parametrize("arguments", [["--help"], ["push", "--help"], ["train", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom deltahub.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'ray', 'numpy') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_hub_commands_need_no_torch(tmp_path):
    code = (
        "import sys\nfrom deltahub.cli import main\n"
        f"main(['list', '--hub', {str(tmp_path / 'hub')!r}])\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_public_names_are_there():
    import deltahub

    for _ in range(2):  # a module of the same name would stand in the way from its import on
        found = {name: getattr(deltahub, name) for name in deltahub.__all__}
    assert [name for name, value in found.items() if isinstance(value, ModuleType)] == ["tuning"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = deltahub.nothing
