"""Changes the code, a little and at random, and tells which changes no test notices.

    pip install -e '.[test,mutation]'
    python tests/mutate.py                              15 mutants of each part
    python tests/mutate.py losses clicks --sample 0     all of two parts: hours

The mutants are cosmic-ray's: `<` for `<=`, `+` for `-`, 1 for 2, `not` added. They are
drawn by place in the code, so that no line counts more because many things can be done
to it. None is made in type annotations and in `@dataclass(...)`, which pyright checks,
none that is no Python, and none that no test can see: `==` for `is`, and what
`strict=True` of `zip`, an assertion, `flush=True` of `print` and the constants in
TUNING say.

Each is written into a copy of the working tree and meets the tests of its part in a
process of its own, forked after the imports that cost time: first the tests that reach
the changed statement, then the others. It prints the share that is killed with its
Wilson interval of 95 %. Exits with 1 when a mutant survives.
"""

import argparse
import ast
import contextlib
import importlib
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import hypothesis
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Modules under ranker/, and the tests that hold what they promise.
PARTS = {
    "losses": (["losses"], ["tests/losses", "ranker/losses"]),
    "metrics": (["metrics"], ["tests/metrics", "ranker/metrics"]),
    "packing": (
        ["data/packing.py"],
        ["tests/data/test_packing.py", "tests/data/test_trees.py"],
    ),
    "pipeline": (
        ["data/pipeline.py", "data/pairs.py"],
        [
            "tests/data/test_pipeline.py",
            "tests/data/test_triple_batches.py",
            "tests/data/test_pairs.py",
            "tests/data/test_trees.py",
        ],
    ),
    "collections": (
        ["data/collections.py", "data/ranked.py"],
        [
            "tests/data/test_collections.py",
            "tests/data/test_layouts.py",
            "tests/data/test_list_files.py",
        ],
    ),
    "clicks": (
        ["data/clicks.py", "data/click_engine.py"],
        [
            "tests/data/test_clicks.py",
            "tests/data/test_click_logs.py",
            "ranker/data/clicks.py",
        ],
    ),
    "checkpoint": (
        ["training/checkpoint.py"],
        ["tests/training/test_checkpoint.py"],
    ),
    "step": (["training/step.py"], ["tests/training/test_step.py"]),
    "manifests": (["manifests.py"], ["tests/test_manifests.py"]),
}
# Constants that decide how fast something is or how much memory it takes, or how near
# to its limit a search stops, and no result that anybody is promised.
TUNING = (
    *("_CHUNK", "_FEW_TIES", "_STEPS", "_SMALL"),  # metrics
    *("_CACHED_DOCUMENTS", "THREADS", "_TEXTS", "_CALLS", "AHEAD", "WAITING"),  # pairs
    *("_READY", "_GROUP"),  # pipeline
    *("_FETCHED", "_LOOKED_UP"),  # clicks
)
# Imported once. What is forked later must not have started a backend of jax.
IMPORTED = (
    *("pytest", "hypothesis", "numpy", "scipy.stats", "scipy.optimize", "pyarrow"),
    *("pyarrow.parquet", "duckdb", "jax", "jax.numpy", "flax.nnx", "optax", "grain"),
    *(
        "chex",
        "orbax.checkpoint",
        "tensorflow_datasets",
        "transformers",
        "torch",
        "rax",
    ),
)


@dataclass(frozen=True)
class Mutant:
    """One change that can be made to a module."""

    path: str  # from the root of the tree
    line: int
    column: int
    operator: str  # of cosmic-ray
    arguments: tuple[tuple[str, object], ...]
    occurrence: int


def left_alone(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the parts of a module begin and end that are not changed."""
    every: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            every.append(node.returns)
        elif isinstance(node, ast.arg | ast.AnnAssign):
            every.append(node.annotation)
        elif isinstance(node, ast.ClassDef):
            every += [o for o in node.decorator_list if "dataclass" in ast.unparse(o)]
        elif isinstance(node, ast.keyword) and node.arg in ("strict", "flush"):
            every.append(node.value)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in TUNING:
            every.append(node.value)
    return [
        # A decorator begins with its @.
        ((one.lineno, one.col_offset - 1), (one.end_lineno, one.end_col_offset))
        for one in every
        if one is not None
    ]


def mutants_of(path: str) -> Iterator[Mutant]:
    """All changes to a module, but those that `left_alone` leaves out."""
    from cosmic_ray import ast as parsing
    from cosmic_ray import plugins

    source = (ROOT / path).read_text()
    left_out = left_alone(source)
    nodes = list(parsing.ast_nodes(parsing.get_ast(source)))
    for name in plugins.operator_names():
        kind = plugins.get_operator(name)
        if kind.arguments():  # made for one project's own functions
            continue
        if name.endswith(("_Is_Eq", "_IsNot_NotEq")):
            continue
        places = (place for node in nodes for place in kind().mutation_positions(node))
        for occurrence, (start, _) in enumerate(places):
            if not any(first <= start < last for first, last in left_out):
                yield Mutant(path, *start, name, (), occurrence)


def drawn(every: list[Mutant], count: int, generator: random.Random) -> list[Mutant]:
    """Some of the mutants, at most one at a place; 0: all of them."""
    if not count:
        return [one for one in every if code_of(one)]
    places: dict[tuple[str, int, int], list[Mutant]] = {}
    for one in every:
        places.setdefault((one.path, one.line, one.column), []).append(one)
    order = generator.sample(sorted(places), len(places))
    chosen = (generator.choice(places[place]) for place in order)
    return list(itertools.islice((one for one in chosen if code_of(one)), count))


def code_of(mutant: Mutant) -> str | None:
    """The module with the change; None where that is no Python, as `f(+arguments)`."""
    from cosmic_ray import mutating, plugins

    operator = plugins.get_operator(mutant.operator)(**dict(mutant.arguments))
    source = (ROOT / mutant.path).read_text()
    code = mutating.mutate_code(source, operator, mutant.occurrence)
    try:
        ast.parse(code)
    except SyntaxError:
        return None
    return code


class Watch:
    """A plugin of pytest: notes which test reaches which line, and for how long."""

    def __init__(self, copy: pathlib.Path, files: list[str]):
        import coverage

        self.copy, self.files = copy, files
        self.coverage = coverage.Coverage(
            data_file=None, config_file=False, include=[str(copy / o) for o in files]
        )
        self.seconds: dict[str, float] = {}
        self.coverage.start()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Counts the lines of a test."""
        begun = time.monotonic()
        self.coverage.switch_context(item.nodeid)
        yield
        self.seconds[item.nodeid] = time.monotonic() - begun

    def pytest_sessionfinish(self) -> None:
        """Writes what was found."""
        self.coverage.stop()
        data = self.coverage.get_data()
        lines = {
            one: data.contexts_by_lineno(str(self.copy / one)) for one in self.files
        }
        (self.copy / "reached.json").write_text(json.dumps([self.seconds, lines]))


class Choose:
    """A plugin of pytest: runs some tests, the shortest of a file first.

    A test that takes ten times as long as it does, and ten seconds, ends the process.
    """

    def __init__(self, wanted: set[str], seconds: dict[str, float]):
        self.wanted, self.seconds = wanted, seconds

    def pytest_sessionstart(self) -> None:
        """Sets the alarm for the imports."""
        signal.setitimer(signal.ITIMER_REAL, 60)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leaves the others out."""
        items[:] = sorted(
            (one for one in items if one.nodeid in self.wanted),
            key=lambda one: (one.path, self.seconds[one.nodeid]),
        )

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Sets the alarm."""
        signal.setitimer(signal.ITIMER_REAL, 10 + 10 * self.seconds[item.nodeid])
        yield
        signal.setitimer(signal.ITIMER_REAL, 60)


def run_tests(copy: pathlib.Path, tests: list[str], plugin: object) -> str:
    """What became of the tests: passed, failed or stopped."""

    def child() -> None:
        output = os.open(copy / "output.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        quiet = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--tb=short"]
        # Plugins' asserts are not rewritten: they have been imported before.
        quiet += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        made = plugin() if callable(plugin) else plugin
        # What is compiled without a mutant is there for the runs with one.
        sys.dont_write_bytecode = not isinstance(made, Watch)
        os._exit(pytest.main([*quiet, *tests], plugins=[made]))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    code = process.exitcode
    if code == pytest.ExitCode.USAGE_ERROR:
        raise SystemExit((copy / "output.txt").read_text()[-3000:])
    if code in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
        return "passed"
    return "stopped" if code == -signal.SIGALRM else "failed"


def statement_lines(source: str, line: int) -> set[int]:
    """Lines of the innermost statement at `line`: of its head alone, if it has a body.

    For the head of a function those of the function as well, and for a constant or a
    field those that read one of that name.
    """
    tree = ast.parse(source)
    found = tree.body[0]
    for node in ast.walk(tree):
        inside = isinstance(node, ast.stmt) and node.lineno <= line
        if inside and line <= (node.end_lineno or 0):
            found = node  # walked from the outside in
    end = found.end_lineno or 0
    if isinstance(found, ast.If | ast.For | ast.While | ast.With | ast.Try):
        end = found.body[0].lineno
    lines = set(range(found.lineno, end + 1))
    targets = getattr(found, "targets", [getattr(found, "target", None)])
    names = {one.id for one in targets if isinstance(one, ast.Name)}
    for node in ast.walk(tree):
        if getattr(node, "id", getattr(node, "attr", None)) in names:
            lines.add(node.lineno)
    return lines


@contextlib.contextmanager
def copied() -> Iterator[pathlib.Path]:
    """A copy of the tree's files, in which the tests are run."""
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "ranker"
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        os.environ.update(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1")
        yield copy


def difference(mutant: Mutant, code: str) -> str:
    """The changed line, before and after."""
    before = (ROOT / mutant.path).read_text().splitlines()
    after = code.splitlines()
    place = next(
        (
            i
            for i, (a, b) in enumerate(zip(before, after, strict=False))
            if a.strip() != b.strip()
        ),
        mutant.line - 1,
    )
    return (
        f"  {mutant.path}:{place + 1}  {mutant.operator}\n"
        f"    - {before[place].strip()}\n    + {after[place].strip()}"
    )


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share."""
    centre, square = hits + z * z / 2, n + z * z
    half = z * math.sqrt(hits * (n - hits) / n + z * z / 4)
    return (centre - half) / square, (centre + half) / square


def said(hits: int, n: int) -> str:
    """A share that is killed, in words."""
    low, high = wilson(hits, n)
    return f"{hits} of {n} killed, {hits / n:.0%} ({low:.0%} to {high:.0%})"


def measure_part(
    name: str, copy: pathlib.Path, sample: int, seed: int
) -> tuple[int, int]:
    """Runs the mutants of a part; how many are killed, of how many."""
    modules, tests = PARTS[name]
    files = [
        str(file.relative_to(ROOT))
        for module in modules
        for file in sorted((ROOT / "ranker" / module).rglob("*.py"))
        or [ROOT / "ranker" / module]
    ]
    every = [one for file in files for one in mutants_of(file)]
    chosen = drawn(every, sample, random.Random(f"{name} {seed}"))
    if run_tests(copy, tests, lambda: Watch(copy, files)) != "passed":
        print((copy / "output.txt").read_text()[-3000:])
        raise SystemExit(f"{name}: the tests fail without a mutant")
    seconds, lines = json.loads((copy / "reached.json").read_text())
    total = sum(seconds.values())
    print(f"{name}: {len(every)} mutants; {len(seconds)} tests, {total:.0f} s")
    outcomes = []
    for mutant in chosen:
        code = code_of(mutant) or ""
        source = (ROOT / mutant.path).read_text()
        reached = lines[mutant.path]
        contexts = {
            test
            for line in statement_lines(source, mutant.line)
            for test in reached.get(str(line), [])
        }
        first = contexts - {""}
        (copy / mutant.path).write_text(code)
        outcome = "passed"
        if first:
            some = sorted({test.split("::")[0] for test in first})
            more = [one for one in tests if one.startswith("-")]
            outcome = run_tests(copy, [*more, *some], Choose(first, seconds))
        # Another test may see what the first has left, as a compiled function.
        if outcome == "passed" and contexts:
            outcome = run_tests(copy, tests, Choose({*seconds} - first, seconds))
        (copy / mutant.path).write_text(source)
        outcomes.append(outcome)
        if outcome == "passed":
            print(f"\n{difference(mutant, code)}", flush=True)
            print("" if contexts else "    no test reaches it", flush=True)
        else:
            print(".", end="", flush=True)
    killed = len(chosen) - outcomes.count("passed")
    late = outcomes.count("stopped")
    print(
        f"\n{name}: {said(killed, len(chosen))}, {late} by the time limit", flush=True
    )
    return killed, len(chosen)


def main() -> None:
    """Tests parts by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--sample", type=int, default=15, help="a part; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        raise SystemExit(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    for module in IMPORTED:
        importlib.import_module(module)
    # The same examples each time, and none is made smaller: that it fails is enough.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile(
        "mutants", derandomize=True, database=None, phases=phases
    )
    hypothesis.settings.load_profile("mutants")
    with copied() as copy:
        found = [
            measure_part(name, copy, arguments.sample, arguments.seed)
            for name in arguments.parts or PARTS
        ]
    killed, every = (sum(column) for column in zip(*found, strict=True))
    print(f"all: {said(killed, every)}")
    raise SystemExit(killed < every)


if __name__ == "__main__":
    main()
