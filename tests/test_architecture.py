"""The house: imports point one way, and no setting is without effect."""

import ast
import dataclasses
import pathlib
import subprocess
import sys

import pytest

from ranker import config

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "ranker"

# A module imports from lower rows, or from its own folder. The longest prefix counts.
ROWS = {
    "errors": 0,
    "config": 1,
    "losses": 1,
    "metrics": 1,
    "batch": 1,
    "chips": 1,
    "storage": 1,
    "processes": 1,
    "manifests": 2,
    "sharding": 2,
    "cli": 3,
    "data": 3,
    "models": 3,
    "online": 3,
    "online.__main__": 7,
    "reporting": 4,
    "scoring": 4,
    "serving.contract": 4,
    "serving.frame": 4,
    "serving.golden": 4,
    "serving.onnx_graph": 4,
    "serving.precision": 4,
    "serving.runtimes": 4,
    "training": 5,
    "planning": 6,
    "serving": 6,
}
ENTRY = 7
FORBIDDEN = {("serving", "training"), ("training", "planning")}


def _row(module):
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in ROWS:
            return ROWS[".".join(parts[:end])]
    return ENTRY


def _modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "__init__.py":
            yield path, ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def _imports(path):
    """Modules of the package that a file imports, in either form of the statement."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("ranker."):
                yield name.removeprefix("ranker.")


def _wrong(module, targets):
    here = module.split(".")[0]
    for target in targets:
        there = target.split(".")[0]
        if there in ("__version__", here):
            continue
        if _row(target) >= _row(module) or (here, there) in FORBIDDEN:
            yield f"{module} imports {target}"


def test_imports_point_to_lower_rows():
    wrong = [
        sentence
        for path, module in _modules()
        for sentence in _wrong(module, _imports(path))
    ]
    assert not wrong, wrong


@pytest.mark.parametrize(
    "line",
    [
        "import ranker.training.train",
        "from ranker.training import train",
        "from ranker import training",
    ],
)
def test_every_form_of_import_is_seen(tmp_path, line):
    file = tmp_path / "lists.py"
    file.write_text(f"def f():\n    {line}\n")
    assert list(_wrong("losses.lists", _imports(file)))


def test_configs_import_config_alone():
    for path in (PACKAGE.parent / "configs").glob("*.py"):
        tree = ast.parse(path.read_text())
        names = [
            (node.module, [alias.name for alias in node.names])
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
        ]
        assert names == [("ranker", ["config"])], path
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.Import)], path


def test_every_config_field_is_read():
    sources = "\n".join(path.read_text() for path, _ in _modules())
    unread = [
        f"{one.__name__}.{field.name}"
        for one in vars(config).values()
        if dataclasses.is_dataclass(one) and isinstance(one, type)
        for field in dataclasses.fields(one)
        if f".{field.name}" not in sources
        # Text.of(role, "length") reads teacher_length or student_length.
        and f'"{field.name.removeprefix("teacher_").removeprefix("student_")}"'
        not in sources
    ]
    assert not unread, unread


def test_importing_starts_no_backend():
    modules = [
        f"ranker.{module}"
        for _, module in _modules()
        # data.beam needs an extra that has an environment of its own.
        if module not in ("run", "train", "score", "evaluate", "export", "data.beam")
    ]
    code = (
        f"import importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
