"""The house: imports point one way, nothing is too long, no setting without effect."""

import ast
import dataclasses
import functools
import graphlib
import importlib
import pathlib
import subprocess
import sys

import attribute_reads
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
NEEDS_MORE = "data.beam"  # its extra has an environment of its own
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


@functools.cache
def _tree(path):
    return ast.parse(path.read_text())


def _imports(path):
    """Modules of the package that a file imports, in either form of the statement."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: write the import in full"
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
        tree = _tree(path)
        names = [
            (node.module, [alias.name for alias in node.names])
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
        ]
        assert names == [("ranker", ["config"])], path
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.Import)], path


def test_a_relative_import_is_refused(tmp_path):
    file = tmp_path / "lists.py"
    file.write_text("from ..training import train\n")
    with pytest.raises(AssertionError, match="lists.py:1: write the import in full"):
        list(_imports(file))


def test_modules_of_a_folder_do_not_need_each_other_in_a_circle():
    modules = dict((module, path) for path, module in _modules())
    graph = {
        module: {
            known
            for target in _imports(path)
            for known in (target, target.rpartition(".")[0])
            if known in modules
        }
        for module, path in modules.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


# --- sizes ---

OTHERS = ("configs", "benchmarks", "tests")  # are held to the sizes of the package


def _sources():
    for folder in (PACKAGE, *(PACKAGE.parent / one for one in OTHERS)):
        yield from sorted(folder.rglob("*.py"))


def _functions(tree):
    """Functions with their full names, and whether all of each name is public."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, not node.name.startswith("_") or node.name == "__init__"
        elif isinstance(node, ast.ClassDef):
            hidden = node.name.startswith("_")
            yield from ((one, shown and not hidden) for one, shown in _functions(node))


def _positional(function):
    every = function.args.posonlyargs + function.args.args
    return [one.arg for one in every if one.arg not in ("self", "cls")]


def _body_lines(function):
    """Lines from the first statement after the docstring to the last."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_no_public_function_takes_more_than_five_arguments_by_position():
    wrong = [
        f"{path}:{one.lineno} {one.name}({', '.join(_positional(one))})"
        for path in _sources()
        for one, public in _functions(_tree(path))
        if public and len(_positional(one)) > 5
    ]
    assert not wrong, wrong


def test_no_function_body_is_over_sixty_lines():
    wrong = [
        f"{path}:{one.lineno} {one.name}: {_body_lines(one)} lines"
        for path in _sources()
        for one in ast.walk(_tree(path))
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
        if _body_lines(one) > 60
    ]
    assert not wrong, wrong


def _equal_runs(paths, lines):
    """Where as many lines in a row, blank ones aside, stand in two places."""
    seen = {}
    for path in paths:
        written = enumerate(path.read_text().splitlines(), 1)
        kept = [(number, line.strip()) for number, line in written if line.strip()]
        for at in range(len(kept) - lines + 1):
            run = tuple(line for _, line in kept[at : at + lines])
            here = f"{path}:{kept[at][0]}"
            if run in seen:
                yield f"{here} is {seen[run]}"
            seen.setdefault(run, here)


def test_no_more_than_fifteen_equal_lines_stand_in_two_places():
    assert not list(_equal_runs(_sources(), 16))


def test_sizes_are_seen(tmp_path):
    """What the three tests above look for is found where it is."""
    file = tmp_path / "long.py"
    lines = [f"    x = {n}" for n in range(61)]
    body = ["def f(a, b, c, d, e, g):", '    """Says."""', *lines]
    file.write_text("\n".join(body) + "\n")
    [(function, public)] = _functions(ast.parse(file.read_text()))
    assert public and _positional(function) == list("abcdeg")
    assert _body_lines(function) == 61
    (tmp_path / "copy.py").write_text("\n\n".join(lines[7:23]))
    assert list(_equal_runs([file, tmp_path / "copy.py"], 16)) == [
        f"{tmp_path / 'copy.py'}:1 is {file}:10"
    ]


# --- one word, one meaning ---

# What several modules define under one name, and why. A constant in capitals and a type
# variable are read with their module and stand outside the rule.
SHARED = {
    "main": "the command line of an entry",
    "load": "the face of `ranker` (and of its library) and of `ranker.config`",
    "plan": "a stage's manifest, without computing anything",
    "execute": "a planned stage's work",
    "Settings": "what a command of `ranker.online` is asked for",
    "analyse": "a command of `ranker.online`: a log and its Settings to a report",
    "attend": "a kernel of attention; `models.attention` chooses among them",
    "write": "config.json of a decoder or an encoder; models.families holds both",
    "old_spelling": "likewise, as transformers 4 reads it",
    "render": "a page of reports as HTML",
    "grids": "the tables of a report",
}


def _defined(tree):
    """Public names that a module defines; not what it takes over under its own name."""
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                taken = isinstance(value, ast.Attribute) and value.attr == name
                if not (name.isupper() or taken):
                    yield name


def _several(trees):
    """Public names that more than one module defines, with the modules."""
    found = {}
    for module, tree in trees:
        for name in _defined(tree):
            if not name.startswith("_"):
                found.setdefault(name, set()).add(module)
    return {name: modules for name, modules in found.items() if len(modules) > 1}


def test_a_public_name_has_one_meaning_in_all_modules():
    trees = [(module, _tree(path)) for path, module in _modules()]
    trees.append(("", _tree(PACKAGE / "__init__.py")))
    found = _several(trees)
    new = {name: sorted(found[name]) for name in found.keys() - SHARED.keys()}
    assert not new, f"rename all but one: {new}"
    assert not SHARED.keys() - found.keys(), "these are unique; unlist them"


def test_a_name_in_two_modules_is_seen():
    sources = {
        "a": "class Job: pass\nFILE = 'a'\nRow = dict\n",
        "b": "def Job(): pass\nFILE = 'b'\nRow = a.Row\n",
    }
    trees = [(module, ast.parse(source)) for module, source in sources.items()]
    assert _several(trees) == {"Job": {"a", "b"}}


# --- manifests ---


def _untyped(tree):
    """Lines that read a manifest's fact by a text, which no type checker sees."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.Subscript(value=ast.Attribute(attr="facts") as read)
                | ast.Attribute(value=ast.Attribute(attr="facts") as read, attr="get")
                | ast.Compare(ops=[ast.In()], comparators=[ast.Attribute() as read])
            ) if read.attr == "facts":
                if ast.unparse(read) != "log.facts":  # of a log of events
                    yield node.lineno


def test_facts_of_manifests_are_read_and_written_by_their_types():
    """A misspelt one is then an error of the type checker."""
    wrong = [
        f"{path}:{line}"
        for path, module in _modules()
        if module not in ("manifests", "data.packing")
        for line in _untyped(_tree(path))
    ]
    assert not wrong, f"use `manifests.Facts.of`: {wrong}"


def test_an_untyped_fact_is_seen():
    source = "a.facts['x']\na.b.facts.get('x')\n'x' in a.facts\nF.of(a.facts).x\n"
    assert sorted(_untyped(ast.parse(source))) == [1, 2, 3]


# --- what tests may know ---

# Tests hold what is public. These name what is not, and why.
KNOWN = {
    ("chaos/worker.py", "_finish"),  # kills a process between the parts of a save
    ("chaos/worker.py", "_delete_old"),  # likewise
    ("attribute_reads.py", "_check"),  # a check of a setting is not a use of it
}


def _private(tree):
    """Private names that a module, its classes and their methods define."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield name


def _is_private(name):
    return name.startswith("_") and not name.startswith("__") and name != "_"


def _names_read(tree):
    """Private names that are not a file's own: attributes, imports, and strings.

    A string names what is patched; a limit, in capitals, may be, to make it small.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name) | ast.alias(name=name) if _is_private(name):
                yield name
            case ast.Constant(value=str(name)) if _is_private(name):
                if not name.isupper():
                    yield name


def test_no_test_reads_a_private_field_or_function():
    private = {
        name
        for path, _ in _modules()
        for name in _private(_tree(path))
        if _is_private(name)
    }
    tests = pathlib.Path(__file__).parent
    found = {
        (str(path.relative_to(tests)), name)
        for path in tests.rglob("*.py")
        if path != pathlib.Path(__file__)
        for name in _names_read(_tree(path))
        if name in private
    }
    assert found == KNOWN, f"make it public, or test through what is: {found ^ KNOWN}"


def test_a_private_name_is_seen():
    source = (
        "from ranker.data.trec import _width\n"
        "job._encode(self._own)\n"
        "monkeypatch.setattr(store, '_encode', None)\n"
        "monkeypatch.setattr(store, '_LIMIT', 1)\n"
    )
    assert sorted(_names_read(ast.parse(source))) == ["_encode", "_encode", "_width"]
    defined = "_LIMIT = 1\nclass _A:\n def _f(self): self._x = 1\n"
    assert set(_private(ast.parse(defined))) >= {"_LIMIT", "_A", "_f", "_x"}


# --- settings ---


def test_every_setting_is_read():
    reads = attribute_reads.reads_of(
        (importlib.import_module(f"ranker.{module}"), _tree(path))
        for path, module in _modules()
        if module not in ("__main__", NEEDS_MORE)
        and not module.startswith(("losses", "metrics"))
    )
    unread = [
        f"{one.__name__}.{name}"
        for one in vars(config).values()
        if isinstance(one, type) and dataclasses.is_dataclass(one)
        for name in attribute_reads.annotated(one)
        if (one, name) not in reads
    ]
    assert not unread, unread


STRAY = """
from dataclasses import dataclass

@dataclass
class Loop:
    steps: int

@dataclass
class Export:
    steps: int
    batch: int
    query: str
    loops: tuple[Loop, ...]
    dtype: str

    def __post_init__(self):
        assert self.batch

def use(settings: Export, other):
    other.batch, "query", Loop(steps=1)
    for loop in settings.loops:
        print(loop.steps)
    again = settings
    return again.dtype
"""


def test_a_read_of_another_class_is_no_read(tmp_path, monkeypatch):
    (tmp_path / "stray_settings.py").write_text(STRAY)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("stray_settings")
    assert attribute_reads.reads_of([(module, ast.parse(STRAY))]) == {
        (module.Export, "loops"),
        (module.Loop, "steps"),
        (module.Export, "dtype"),
    }


def test_importing_starts_no_backend():
    modules = [
        f"ranker.{module}"
        for _, module in _modules()
        if module not in ("run", "train", "score", "evaluate", "export", NEEDS_MORE)
    ]
    code = (
        f"import importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_slow_test_exists(request):
    """A mark of a test that was renamed would leave the slow test in `pytest`."""
    root = PACKAGE.parent
    plugin = request.config.pluginmanager.get_plugin(str(root / "conftest.py"))
    assert len(plugin.SLOW) == len(set(plugin.SLOW))
    for one in (*plugin.SLOW, *plugin.LONGEST):
        path, _, test = one.partition("::")
        assert (root / path).exists(), one
        if test:
            assert f"def {test}(" in (root / path).read_text(), one
