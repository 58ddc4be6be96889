"""The rules of `clicks` as an Apache Beam pipeline, on the runner that a team has.

    read | drop | join with the corpus | place and pack | merge, rank, sort and write

Rows are judged, merged and ranked by the functions of `clicks`; Beam moves them. Each
file is written by one worker and holds a range of the hashes that order the examples,
so the files, one after another, are what one machine would have written. A row moves
once, in a packet for its file: what a runner does for each element that it moves
costs more than the rules. Nothing here is needed, or imported, by `ranker.prepare`
without --runner.
"""

import functools
import json
import pathlib
import pickle
import tempfile
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam  # type: ignore[import-not-found]
from apache_beam.io.filesystems import FileSystems  # type: ignore[import-not-found]
from apache_beam.options.pipeline_options import (  # type: ignore[import-not-found]
    PipelineOptions,
)
from apache_beam.transforms.window import (  # type: ignore[import-not-found]
    GlobalWindows,
)

from ranker import config
from ranker.data import click_logs, clicks, datasets, files, formats
from ranker.data.records import Click
from ranker.data.shards import SUMMARY, Shard, ShardedClicks, doubt, doubtful_from
from ranker.data.sources import Files, Source
from ranker.data.words import fold
from ranker.errors import ConfigError, UserError
from ranker.storage import open_path

_MOST_DOUBTFUL = 10_000  # queries of a file that are listed; above that, none is
_SHARD_BYTES = 2**26  # of the log, for each file that is written
_LEAST_SHARDS = 4  # so that several workers write
_MOST_PAIRS = 50_000  # that a worker merges before they move
_CLICK_COLUMNS = [column.name for column in click_logs.SCHEMA]


@dataclass(frozen=True)
class WorkerSettings:
    """What the workers need to know.

    Attributes:
      log: files of the click log.
      names: our column -> theirs.
      corpus: files of documents, in order, for rows that have an id and no text.
      rules: numbers that the rules take.
      held_out: folded queries that nothing is trained on.
      on_error: at a malformed row.
      max_skipped: share of a file's rows that may be malformed.
      output: folder that all workers can write to, of a bucket or shared.
      shards: files that each split is written to.
      doubtful: queries of at least this `shards.doubt` are listed.
    """

    log: tuple[str, ...]
    names: Mapping[str, str]
    corpus: tuple[str, ...]
    rules: config.ClickRules
    held_out: frozenset[str]
    on_error: formats.OnError
    max_skipped: float
    output: str
    shards: int
    doubtful: int


def run_pipeline(job: WorkerSettings, options: Sequence[str]) -> None:
    """Runs the pipeline to its end; it leaves files and `SUMMARY` in `job.output`.

    Args:
      job: what is to be done.
      options: Beam's, such as --runner=FlinkRunner.

    Raises:
      ConfigError: when the pipeline does not end well.
      DataError: at a malformed row, as on one machine.
    """
    # Workers must find what was imported here under the same names.
    known = PipelineOptions(list(options), save_main_session=False)
    try:
        result = build_pipeline(beam.Pipeline(options=known), job).run()
        state = str(result.wait_until_finish())
    except UserError:
        raise
    except Exception as error:  # of runners: each has its own
        text = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ConfigError(
            f"the Beam pipeline ended with {type(error).__name__}: {text[:300]}; its "
            f"options were {' '.join(options)}"
        ) from error
    if state not in ("DONE", "None"):
        raise ConfigError(
            f"the Beam pipeline ended as {state}; see the log of its runner"
        )


def build_pipeline(pipeline: Any, job: WorkerSettings) -> Any:
    """The pipeline, with the rules and their outputs."""
    read = (
        pipeline
        | "Log" >> beam.Create(list(job.log))
        | "SpreadLog" >> beam.Reshuffle()
        | "ReadLog" >> beam.ParDo(_Read(job)).with_outputs(main="pairs")
    )
    joined = _join(pipeline, job, read.bare)
    shards = (
        (read.pairs, joined.pairs)
        | "AllPairs" >> beam.Flatten()
        | "Place" >> beam.ParDo(_Place(job))
        | "Move" >> beam.GroupByKey()
        | "Write" >> beam.MapTuple(functools.partial(_write, job=job))
        | "Files" >> beam.combiners.ToList()
    )
    tallies = (
        (read.tallies, joined.tallies)
        | "AllTallies" >> beam.Flatten()
        | "Tally" >> beam.CombineGlobally(_add_all)
    )
    held = read.held | "Held" >> beam.Distinct() | "HeldCount" >> _count()
    singles = {
        "tallies": beam.pvalue.AsSingleton(tallies),
        "held": beam.pvalue.AsSingleton(held),
        "notes": beam.pvalue.AsSingleton(read.notes | beam.combiners.ToList()),
    }
    by = job.rules.count_by
    _ = shards | "Summary" >> beam.Map(_summarise, output=job.output, by=by, **singles)
    return pipeline


def _count() -> Any:
    return beam.combiners.Count.Globally()


# --- rows ---


class _Read(beam.DoFn):
    """Rows of a file: pairs, and "bare" ones that need the corpus."""

    def __init__(self, job: WorkerSettings):
        self._job = job

    def process(self, path: str) -> Iterator[Any]:
        """Yields pairs; tagged: bare, held, tallies, notes."""
        job = self._job
        found = open_path(path)
        log = click_logs.ClickLog([found], job.names)
        skipped = formats.Skipped(job.max_skipped)
        tallies: Counter[str] = Counter()
        held: set[str] = set()
        try:
            for batch in click_logs.read_log_batches(
                log, on_error=job.on_error, skipped=skipped
            ):
                for click in _clicks(batch):
                    yield from self._row(click, tallies, held)
        except UserError as error:
            yield beam.pvalue.TaggedOutput("notes", {"problem": str(error)})
        for query in held:
            yield beam.pvalue.TaggedOutput("held", query)
        yield beam.pvalue.TaggedOutput("tallies", dict(tallies))
        note = {"ignored": log.ignored, "skipped": [*skipped.report().items()]}
        yield beam.pvalue.TaggedOutput("notes", note)

    def _row(
        self, click: Click, tallies: Counter[str], held: set[str]
    ) -> Iterator[Any]:
        tallies["rows"] += 1
        if click.position is not None:
            tallies[f"position/{click.position}/rows"] += 1
            tallies[f"position/{click.position}/clicked"] += click.clicked
        row, rules = click, self._job.rules
        click = clicks.weigh_row(row, rules)
        query = fold(click.query)
        reason = clicks.reason_to_drop(click, query, rules, self._job.held_out)
        if reason not in (clicks.NOT_CLICKED, clicks.SHORT):
            tallies["clicked"] += row.count
            tallies["counted"] += click.count
            tallies["timed"] += clicks.by_dwell(row, rules)
        if reason:
            tallies[reason] += 1
            if reason == clicks.HELD_OUT:
                held.add(query)
        elif clicks.is_bare(click):
            known = (query, click.query, click.count)
            yield beam.pvalue.TaggedOutput("bare", (click.document_id, known))
        elif not click.title and not click.summary:
            tallies[clicks.EMPTY] += 1
        else:
            tallies["kept"] += 1
            yield clicks.pair(click, query, (click.title, click.summary))


def _clicks(batch: Any) -> Iterator[Click]:
    columns = [batch[name].to_pylist() for name in _CLICK_COLUMNS]
    for cells in zip(*columns, strict=True):
        yield Click(**dict(zip(_CLICK_COLUMNS, cells, strict=True)))


# --- documents ---


def _join(pipeline: Any, job: WorkerSettings, bare: Any) -> Any:
    """Pairs of the rows that have no text; the corpus is read where there are any."""
    texts = (
        pipeline
        | "Corpus" >> beam.Create(list(enumerate(job.corpus)))
        | "SpreadCorpus" >> beam.Reshuffle()
        | "ReadCorpus"
        >> beam.FlatMap(
            _texts, bare=beam.pvalue.AsSingleton(bare | "BareCount" >> _count())
        )
    )
    return (
        {"rows": bare, "texts": texts}
        | "Join" >> beam.CoGroupByKey()
        | "Complete" >> beam.ParDo(_Complete()).with_outputs(main="pairs")
    )


def _texts(place: tuple[int, str], bare: int) -> Iterator[Any]:
    if not bare:
        return
    order, path = place
    skipped = formats.Skipped(1.0)  # `prepare` judges the corpus, and has
    documents = formats.read_documents(
        [open_path(path)], on_error="skip", skipped=skipped
    )
    for number, one in enumerate(documents):
        yield one.id, (order, number, one.title, one.text)


class _Complete(beam.DoFn):
    """Rows with the title and text of their document."""

    def process(self, element: Any) -> Iterator[Any]:
        """Yields pairs; tagged: tallies."""
        document_id, found = element
        texts = min(found["texts"], default=None)  # the first, where an id comes twice
        tallies: Counter[str] = Counter()
        for query, spelt, count in found["rows"]:
            if texts is None or not any(texts[2:]):
                tallies[clicks.UNKNOWN if texts is None else clicks.EMPTY] += 1
                continue
            tallies["kept"] += 1
            click = Click(spelt, "", "", document_id, count=count)
            yield clicks.pair(click, query, texts[2:])
        yield beam.pvalue.TaggedOutput("tallies", dict(tallies))


# --- pairs ---


def _add_all(tallies: Iterable[Mapping[str, int]]) -> dict[str, int]:
    result: Counter[str] = Counter()
    for one in tallies:
        result.update(one)
    return dict(result)


class _Place(beam.DoFn):
    """Packets of pairs for (split, number of a file), merged where rows meet here."""

    def __init__(self, job: WorkerSettings):
        self._job = job
        self._seen: dict[clicks.Pair, clicks.Seen] = {}

    def start_bundle(self) -> None:
        """Forgets a bundle that failed."""
        self._seen = {}

    def process(self, element: tuple[clicks.Pair, clicks.Seen]) -> Iterator[Any]:
        """Yields packets when enough is known."""
        clicks.merge_into(self._seen, *element)
        if len(self._seen) >= _MOST_PAIRS:
            yield from self._packets()

    def finish_bundle(self) -> Iterator[Any]:
        """Yields the rest."""
        for packet in self._packets():
            yield GlobalWindows.windowed_value_at_end_of_window(packet)

    def _packets(self) -> Iterator[tuple[tuple[str, int], bytes]]:
        found = defaultdict(list)
        for pair, seen in self._seen.items():
            found[self._file(pair[0])].append((pair, seen))
        self._seen = {}
        for file, pairs in found.items():
            yield file, pickle.dumps(pairs, pickle.HIGHEST_PROTOCOL)

    def _file(self, query: str) -> tuple[str, int]:
        place = clicks.query_place(query)
        dev = place[:16] < clicks.dev_bound(self._job.rules.dev_fraction)
        number = int(place[:8], 16) * self._job.shards >> 32
        return "dev" if dev else "train", number


# --- files ---


def _write(
    key: tuple[str, int], packets: Iterable[bytes], job: WorkerSettings
) -> tuple[dict[str, Any], dict[str, int], int]:
    """Writes a file; returns what is to be known of it, clicks a query, and pairs.

    Runners may call this twice for one file: each call writes one of its own name.
    """
    split, number = key
    queries: dict[str, dict[str, clicks.Seen]] = defaultdict(dict)
    for packet in packets:
        for (query, name), seen in pickle.loads(packet):
            clicks.merge_into(queries[query], name, seen)
    pairs = sum(map(len, queries.values()))
    examples, sizes = [], Counter[str]()
    for query in sorted(queries, key=clicks.query_place):
        kept = clicks.most_clicked(queries[query], job.rules.max_per_query)
        examples += kept
        sizes[str(min(len(kept), 20))] += 1
    digest = clicks.Digest()
    for one in examples:
        digest.add(one)
    doubtful = [one.query for one in examples if doubt(one.query) >= job.doubtful]
    name = f"{split}-{number:05d}-{uuid.uuid4().hex[:8]}.array_record"
    with tempfile.TemporaryDirectory() as folder:
        local = pathlib.Path(folder) / name
        datasets.write_click_file(local, examples)
        # ArrayRecord writes local files alone; Beam's own file systems take the bytes.
        with FileSystems.create(FileSystems.join(job.output, name)) as file:
            file.write(local.read_bytes())
    few = len(doubtful) <= _MOST_DOUBTFUL
    shard = Shard(
        split=split,
        number=number,
        name=name,
        records=len(examples),
        digest=digest.hexdigest(),
        doubtful=tuple(doubtful) if few else None,
    )
    return shard.to_json(), dict(sizes), pairs


def _summarise(
    shards: Sequence[Any],
    tallies: Mapping[str, int],
    held: int,
    notes: Sequence[Mapping[str, Any]],
    output: str,
    by: str,
) -> None:
    """Writes what became of the log, for the machine that prepares."""
    told = {
        "shards": [shard for shard, *_ in shards],
        "a_query": _add_all(sizes for _, sizes, _ in shards),
        "tallies": tallies,
        "held_out_queries": held,
        "pairs": sum(pairs for *_, pairs in shards),
        "count_by": by,
        "notes": list(notes),
    }
    with FileSystems.create(FileSystems.join(output, SUMMARY)) as file:
        file.write(json.dumps(told).encode())


# --- the engine ---


def make_engine(
    options: Sequence[str], *, output: str = "", shards: int = 0
) -> Callable[[Source, config.Text, pathlib.Path], ShardedClicks]:
    """Click rules by Beam, for `prepare`.

    Args:
      options: Beam's, such as --runner=FlinkRunner.
      output: folder that all workers can write to; empty: below the workdir.
      shards: files a split; 0: by the size of the log.

    Returns:
      An `Engine`.

    Raises:
      ConfigError: for options that Beam does not know.
    """
    _check(options)

    def apply(
        source: Source, settings: config.Text, folder: pathlib.Path
    ) -> ShardedClicks:
        if not isinstance(source, Files) or source.log is None:
            raise ConfigError(
                "--runner applies the rules to a click log, but there is none; name "
                "one with --config.data.click_log, or leave --runner out"
            )
        place = FileSystems.join(output or str(folder.resolve()), uuid.uuid4().hex[:12])
        FileSystems.mkdirs(place)
        job = _job(source, settings, place, shards)
        run_pipeline(job, options)
        return source.take_clicks(ShardedClicks(place, folder / "taken"))

    return apply


def _job(
    source: Files, settings: config.Text, output: str, shards: int
) -> WorkerSettings:
    assert source.log is not None
    paths = source.log.paths
    data = source.settings
    size = sum(files.fingerprint(one)[1] for one in paths)
    lengths = [settings.teacher_length, settings.student_length]
    return WorkerSettings(
        log=tuple(map(str, paths)),
        names=source.log.names,
        corpus=tuple(str(one) for one in source.collection.corpus),
        rules=data.click_rules,
        held_out=source.members.held_out,
        on_error=data.on_error,
        max_skipped=data.max_skipped,
        output=output,
        shards=shards or max(_LEAST_SHARDS, size // _SHARD_BYTES),
        doubtful=doubtful_from(lengths),
    )


def _check(options: Sequence[str]) -> None:
    try:
        PipelineOptions(list(options)).get_all_options()
    except (ValueError, SystemExit) as error:
        raise ConfigError(
            f"Beam does not take the options {' '.join(options)}: {error}"
        ) from error
