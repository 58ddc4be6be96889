"""The house: imports point one way, and no setting is without effect."""

import ast
import dataclasses
import pathlib
import subprocess
import sys

from ranker import config

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "ranker"

ROWS = {
    "config": 0,
    "batch": 0,
    "manifest": 0,
    "contract": 0,
    "losses": 0,
    "metrics": 0,
    "sharding": 1,
    "data": 2,
    "models": 2,
    "reporting": 2,
    "training": 3,
    "planning": 4,
    "serving": 4,
}
ENTRY = 5
# Within row 0: files that a stage writes.
FORMATS = {("manifest", "config"), ("contract", "manifest")}
FORBIDDEN = {("data", "models"), ("models", "data"), ("serving", "training")}
FORBIDDEN |= {("data", "reporting"), ("models", "reporting")}


def _modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "__init__.py":
            yield path, ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "ranker"
        ):
            base = (node.module or "").removeprefix("ranker").lstrip(".")
            yield from (
                f"{base}.{alias.name}" if base else alias.name for alias in node.names
            )


def test_imports_point_to_lower_rows():
    wrong = []
    for path, module in _modules():
        here = module.split(".")[0]
        for target in _imports(path):
            there = target.split(".")[0]
            if there in ("cli", "__version__") or here == there:
                continue
            low, high = ROWS.get(there, ENTRY), ROWS.get(here, ENTRY)
            if low > high or (low == high and high == 0) or (here, there) in FORBIDDEN:
                if not (here == "cli" or (here, there) in FORMATS):
                    wrong.append(f"{module} imports {target}")
    assert not wrong, wrong


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
        if module not in ("run", "train", "score", "evaluate", "export")
    ]
    code = (
        f"import importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
