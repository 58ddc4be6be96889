"""What `ranker.evaluate` is told on its command line, checked before anything is read.

`--run [COLLECTION/]NAME[@SEED]=FILE` and `--qrels [COLLECTION=]FILE`.
"""

import difflib
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ranker.data.trec import STANDARD_INPUT
from ranker.errors import ConfigError
from ranker.metrics.measures import parse_measure
from ranker.metrics.ranking import Rules

MEASURES = ("NDCG@10", "MRR@10", "MAP", "R@100", "P@10")
MACRO = "macro mean"  # what stands for all collections in a table
_LONGEST = 200  # characters of a name
ALONE = ""  # the collection of a call that names none
_SUFFIXES = (".gz", ".txt", ".trec", ".run", ".res", ".tsv")

Systems = dict[str, dict[str, pathlib.Path]]  # system -> seed, or "", -> run file


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Files to write, besides the tables on the screen."""

    json: pathlib.Path | None = None  # the summary
    per_query: pathlib.Path | None = None  # every query's values; TSV, or JSON lines
    markdown: pathlib.Path | None = None  # the tables
    csv: pathlib.Path | None = None  # a line for each system and measure
    latex: pathlib.Path | None = None  # the tables
    html: pathlib.Path | None = None  # a page with charts


@dataclass(frozen=True, kw_only=True)
class EvaluationFiles:
    """What `python -m ranker.evaluate --qrels FILE --run FILE` is told."""

    qrels: dict[str, pathlib.Path]  # collection -> judgements
    runs: dict[str, Systems]  # collection -> systems
    measures: tuple[str, ...] = MEASURES
    reference: str = ""  # system that the others are compared with; empty: the first
    rules: Rules = field(default_factory=Rules)
    permutations: int = 10_000  # of the randomisation test
    seed: int = 0  # of the draw
    equivalence: float | None = None  # margin, in units of the measure
    across_queries: bool = False  # measure scores across queries, too
    teacher: str = ""  # system whose scores the others' are set beside
    queries: pathlib.Path | None = None  # texts, for slices by length
    fields: pathlib.Path | None = None  # a field of each query, for slices
    outputs: Outputs = field(default_factory=Outputs)

    def __post_init__(self):
        for name in self.measures:
            try:
                parse_measure(name)
            except ValueError as error:
                raise ConfigError(f"--measures: {error}") from error
        for flag, name in (("reference", self.reference), ("teacher", self.teacher)):
            if name:
                self._check_system(flag, name)
        if self.permutations < 1:
            raise ConfigError(
                f"--permutations must be from 1, found {self.permutations}"
            )
        if self.seed < 0:
            raise ConfigError(f"--seed must be from 0, found {self.seed}")
        depth = self.rules.depth
        if depth is not None and depth < 1:
            raise ConfigError(f"--depth must be from 1, found {depth}")
        margin = self.equivalence
        if margin is not None and not 0 < margin < math.inf:
            raise ConfigError(
                f"--equivalence must be above 0 and finite, found {margin}; it is the "
                "largest difference that does not matter, such as 0.01"
            )
        piped = [one for one in self._inputs() if str(one) == STANDARD_INPUT]
        if len(piped) > 1:
            raise ConfigError(
                f"{len(piped)} files would be read from standard input (-), which "
                "can be read once; name files for the others"
            )

    @property
    def systems(self) -> list[str]:
        """All systems, those of the first collection first."""
        return list(dict.fromkeys(name for one in self.runs.values() for name in one))

    def _inputs(self) -> list[pathlib.Path]:
        runs = [
            path
            for systems in self.runs.values()
            for seeds in systems.values()
            for path in seeds.values()
        ]
        more = [one for one in (self.queries, self.fields) if one is not None]
        return [*self.qrels.values(), *runs, *more]

    def _check_system(self, flag: str, name: str) -> None:
        if name in self.systems:
            for collection, systems in self.runs.items():
                if name not in systems:
                    raise ConfigError(
                        f"--{flag}: {name!r} has no run of the collection "
                        f"{collection!r}; add --run {collection}/{name}=FILE"
                    )
            return
        stem = name.partition("@")[0]
        if stem != name and stem in self.systems:
            raise ConfigError(
                f"--{flag}: {name!r} is one seed of {stem!r}; write --{flag} {stem}"
            )
        raise ConfigError(
            f"--{flag}: {name!r} is not one of the runs {', '.join(self.systems)}"
        )


def name_qrels(given: Sequence[str]) -> dict[str, pathlib.Path]:
    """Collections from the values of --qrels: one FILE, or NAME=FILE of each.

    Raises:
      ConfigError: for two of one name, or several without names.
    """
    found: dict[str, pathlib.Path] = {}
    for one in given:
        name, path = _split("qrels", one)
        if not path or (name == "" and one.startswith("=")):
            raise ConfigError(f"--qrels: expected FILE or NAME=FILE, found {one!r}")
        if "/" in name or name == MACRO:
            told = "has a / in it" if "/" in name else "is that of the mean over them"
            raise ConfigError(
                f"--qrels: {one!r}: the name {name!r} of a collection {told}; choose "
                "another, as in --qrels north=A"
            )
        if not name and len(given) > 1:
            raise ConfigError(
                f"--qrels: {len(given)} files, and {path} has no name; name each "
                "collection, as in --qrels north=A --qrels south=B --run north/ours=C"
            )
        if name in found:
            raise ConfigError(
                f"--qrels: {found[name]} and {path} are both called {name!r}; give "
                "each collection its own name"
            )
        found[name] = pathlib.Path(path)
    return found


def _split(flag: str, given: str) -> tuple[str, str]:
    """NAME and FILE of NAME=FILE; a file whose name has "=" in it is a file.

    Raises:
      ConfigError: for a name that no table can show.
    """
    name, equals, path = given.partition("=")
    if not equals or os.path.isfile(given):
        return "", given
    if not name.isprintable() or len(name) > _LONGEST:
        raise ConfigError(
            f"--{flag}: {given[:_LONGEST]!r}: expected a name of at most {_LONGEST} "
            "printable characters before the ="
        )
    return name, path


def name_runs(
    given: Sequence[str], collections: Sequence[str] = (ALONE,)
) -> dict[str, Systems]:
    """Systems of each collection from the values of --run.

    Args:
      given: FILE, named after itself, or [COLLECTION/]NAME[@SEED]=FILE.
      collections: names of the judgements.

    Raises:
      ConfigError: for two of one name, a wrong seed, a collection without judgements
        or without a run.
    """
    found: dict[str, Systems] = {name: {} for name in collections}
    for one in given:
        name, path = _split("run", one)
        if not path or (not name and one.startswith("=")):
            raise ConfigError(f"--run: expected FILE or NAME=FILE, found {one!r}")
        collection, rest = _collection(one, name, list(collections))
        system, seed = _seed(one, rest) if rest else (_stem(path), "")
        _add(found[collection].setdefault(system, {}), system, seed, path)
    for name, systems in found.items():
        if not systems:
            raise ConfigError(
                f"--qrels {name}=FILE: the collection {name!r} has no run; add --run "
                f"{name}/NAME=FILE"
            )
    return found


def _collection(given: str, name: str, collections: list[str]) -> tuple[str, str]:
    """Collection, and the rest of the name."""
    if collections == [ALONE]:
        return ALONE, name
    found, slash, rest = name.partition("/")
    if slash and found in collections and rest:
        return found, rest
    names = ", ".join(collections)
    if not slash or not rest:
        raise ConfigError(
            f"--run: {given!r} does not say of which collection; write --run "
            f"{collections[0]}/NAME=FILE ({names})"
        )
    near = difflib.get_close_matches(found, collections, n=1)
    hint = f"; did you mean {near[0]}?" if near else ";"
    raise ConfigError(
        f"--run: {given!r} is of the collection {found!r}, which has no judgements"
        f"{hint} add --qrels {found}=FILE, or use one of {names}"
    )


def _seed(given: str, name: str) -> tuple[str, str]:
    system, at, seed = name.rpartition("@")
    if not at:
        return name, ""
    if not system or not (seed.isascii() and seed.isdecimal()):
        raise ConfigError(
            f"--run: {given!r}: found the seed {seed!r}, expected a whole number after "
            f"the @, as in --run {system or 'ours'}@0=FILE; a name has no @ otherwise"
        )
    return system, str(int(seed))


def _stem(path: str) -> str:
    name = "stdin" if path == STANDARD_INPUT else pathlib.Path(path).name
    while pathlib.Path(name).suffix in _SUFFIXES:
        name = pathlib.Path(name).stem
    return name


def _add(seeds: dict[str, pathlib.Path], system: str, seed: str, path: str) -> None:
    if seed in seeds:
        called = f"{system}@{seed}" if seed else system
        raise ConfigError(
            f"--run: {seeds[seed]} and {path} are both called {called!r}; give them "
            "names, as in --run first=A --run second=B, or seeds, as in --run "
            f"{system}@0=A --run {system}@1=B"
        )
    if seeds and ("" in seeds or not seed):
        other = next(iter(seeds.values()))
        raise ConfigError(
            f"--run: of {other} and {path}, both of {system!r}, one has a seed and the "
            f"other has none; write {system}@SEED=FILE for every seed, and another "
            "name for another system"
        )
    for known, file in seeds.items():
        if file == pathlib.Path(path):
            raise ConfigError(
                f"--run: {system}@{known} and {system}@{seed} are the same file "
                f"{path}; name the run of each seed"
            )
    seeds[seed] = pathlib.Path(path)


def check_seeds(collections: Mapping[str, Systems]) -> None:
    """Raises ConfigError where a system has other seeds in another collection."""
    known: dict[str, tuple[str, set[str]]] = {}
    for collection, systems in collections.items():
        for system, seeds in systems.items():
            where, expected = known.setdefault(system, (collection, {*seeds}))
            if {*seeds} != expected:
                raise ConfigError(
                    f"--run: {system!r} has the seeds {_listed(expected)} in {where} "
                    f"and {_listed({*seeds})} in {collection}; give the same seeds in "
                    "every collection"
                )


def _listed(seeds: set[str]) -> str:
    return ", ".join(sorted(seeds)) or "none"
