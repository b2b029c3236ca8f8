"""Who may import whom, and the habits of the house."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "metadist").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

#: leaves, which every layer may import
LEAVES = {"errors", "reading", "reading_yaml"}
#: what a layer may import of metadist, besides itself and the leaves
ALLOWED = {
    "errors": set(),
    "reading": set(),
    "reading_yaml": set(),
    "data": set(),
    "models": set(),
    "tracking": set(),
    "tasks": {"data"},
    "learners": {"tasks", "models"},
    "outer": {"learners", "tasks"},
    "config": {"data", "tasks", "models", "learners", "outer", "tracking"},
}
CORE = {"data", "tasks", "models", "learners", "outer", "tracking"}
ALLOWED |= {
    "training": CORE,
    "serving": CORE,
    "distributed": CORE | {"config", "training"},
    "paper": CORE | {"config", "training"},
    "testing": CORE | {"training"},
}
ALLOWED["tuning"] = ALLOWED["distributed"] | {"distributed"}
# A bench of the transport must measure the product's own actors.
ALLOWED["bench"] = ALLOWED["distributed"] | {"distributed"}
ANYTHING = {"cli", "__main__", "__init__"}

#: where a library may be imported
HOMES = {
    "ray": {"distributed", "tuning", "bench"},
    "mlflow": {"tracking", "serving"},
    "pydantic": {"config"},
    "pydantic_core": {"config"},
}


def layer(path: Path) -> str:
    return path.relative_to(ROOT / "metadist").parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, in functions and under conditions too.

    `from a import b` gives both `a` and `a.b`, because `b` may be a module.
    """
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join((*above, *(node.module or "").split("."))).strip(".")
            yield node.lineno, source
            for alias in node.names:
                yield node.lineno, f"{source}.{alias.name}"
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            assert isinstance(first, ast.Constant), f"{path}:{node.lineno} imports something that cannot be seen here"
            yield node.lineno, str(first.value)


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def test_the_walk_sees_every_form(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "metadist/tasks/file.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import metadist.a\n"
        "from metadist import b\n"
        "def f():\n    from metadist.c import x\n    import ray.d as d\n"
        "from . import e\nfrom ..g import h\n"
        "import importlib\nimportlib.import_module('metadist.i')\n"
    )
    found = {name for _, name in imports(file)}
    expected = {"metadist.a", "metadist.b", "metadist.c", "ray.d", "metadist.tasks.e", "metadist.g.h", "metadist.i"}
    assert expected <= found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_layers_import_downwards_only(path: Path) -> None:
    here = layer(path)
    if here in ANYTHING:
        return
    allowed = ALLOWED[here] | {here, "__version__"} | LEAVES
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imports(path)
        if name.startswith("metadist.") and name.split(".")[1] not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_libraries_stay_in_their_homes(path: Path) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imports(path)
        if layer(path) not in HOMES.get(name.split(".")[0], {layer(path)})
    ]
    assert not wrong


def test_mlflow_is_in_one_file_of_serving_at_most() -> None:
    users = {p for p in FILES if layer(p) == "serving" for _, name in imports(p) if name.split(".")[0] == "mlflow"}
    assert len(users) <= 1


def test_what_a_job_names_is_imported_in_one_place() -> None:
    """A name that is known at run time only, which the walk above cannot see."""
    calls = {path for path in FILES for node in ast.walk(ast.parse(path.read_text())) if _resolves(node)}
    assert calls == {ROOT / "metadist/models/own.py"}


def _resolves(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _called(node) == "resolve_name"


BLOCKED = """
import sys
for name in ("ray", "mlflow", "pydantic", "torchvision", "metadist.config"):
    sys.modules[name] = None
import metadist, metadist.learners, metadist.models, metadist.outer, metadist.tasks
import metadist.training.loop, metadist.training.inprocess, metadist.testing.fakes, metadist.testing.toys
print("imported")
"""


def test_the_core_needs_no_ray_mlflow_or_pydantic() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "imported\n"


def test_every_test_file_is_collected(request: pytest.FixtureRequest) -> None:
    """A file whose tests are not found is a file that cannot fail."""
    files = {path for path in TESTS if path.name.startswith("test_")}
    empty = {path for path in files if not _tests_in(path)}
    assert not empty
    stray = {path for path in TESTS if path not in files and _tests_in(path)}
    assert not stray, "pytest collects files named test_*.py"
    session = request.session
    whole = session.config.args in (["tests"], [str(ROOT)], [str(ROOT / "tests")])
    if whole and not session.config.option.keyword and not session.config.option.ignore:
        assert files == {item.path for item in session.items}


def _tests_in(path: Path) -> bool:
    """Whether a file has a test function, or a test class that has or inherits one."""
    tree = ast.parse(path.read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return any(f.name.startswith("test_") for f in functions) or any(c.name.startswith("Test") for c in classes)


def test_no_file_of_odds_and_ends() -> None:
    assert not [path for path in FILES + TESTS if path.stem in ("utils", "util", "helpers", "misc", "common")]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_do_not_sleep(path: Path) -> None:
    tree = ast.parse(path.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _called(node) == "sleep"]
    assert not [f"{path.name}:{node.lineno}" for node in calls]
