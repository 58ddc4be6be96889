"""`score`: the teacher scores the candidates of many queries, offline.

The work is cut into chunks (scoring/pairs.py), and process i of n takes the chunks
whose number is i modulo n, of those that are missing (scoring/job.py). The scores of
a chunk depend on the chunk and the devices of one process alone, so any number of
processes, stopped and started in any way, makes the same files.
"""

import contextlib
import dataclasses
import hashlib
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import ranker
from ranker import config, manifests, processes, sharding
from ranker.data.pairs import ListEncoder, can_share
from ranker.data.prepare import NAME as PREPARE
from ranker.data.prepare import Prepared, prepare
from ranker.data.records import RankedList
from ranker.data.text import Tokenizer
from ranker.errors import DataError
from ranker.manifests import Manifest, ScoreFacts
from ranker.models.folder import resolve_folder
from ranker.scoring import job as jobs
from ranker.scoring import proof as proofs
from ranker.scoring.pair_files import open_input
from ranker.scoring.pairs import Bad, ChunkPairs, Input, ListPairs
from ranker.training.inputs import corpus_tokens
from ranker.training.reporter import Reporter, duration
from ranker.training.scorer import (
    Idle,
    NumberedBatches,
    begin_batches,
    make_score,
    score_lists,
)
from ranker.training.train import adopt
from ranker.training.trained import Trained, load_trained

_KINDS = ("sft", "distill")  # stages that can score


@dataclass(frozen=True)
class ScoreRun:
    """What is to be scored, before a model is loaded."""

    settings: config.Score
    workdir: pathlib.Path
    prepared: Prepared
    source: Input
    manifest: Manifest

    @property
    def folder(self) -> pathlib.Path:
        """Of the stage."""
        return self.workdir / self.settings.name

    @property
    def output(self) -> Any:
        """Folder of the job: a path, or a text such as gs://..."""
        return self.settings.output or self.folder

    @property
    def by(self) -> str:
        """The stage's name, for messages."""
        return f"the score stage {self.settings.name!r}"


def plan(
    settings: config.Score,
    prepared: Prepared,
    workdir: pathlib.Path,
    planned: Mapping[str, Manifest] | None = None,
) -> ScoreRun:
    """The stage with its manifest; arguments as of `training.run.plan`."""
    by = f"the score stage {settings.name!r}"
    if settings.input:
        source: Input = open_input(
            settings.input,
            pairs=settings.pairs,
            world=settings.data.world,
            cache=settings.cache,
            lenient=settings.quarantine > 0,
        )
        pieces = []
    else:
        lists = {name: prepared.lists(name) for name in settings.splits}
        source = ListPairs(lists, prepared.corpus())
        pieces = ["corpus", *(f"lists/{name}" for name in settings.splits)]
    parent = manifests.require_stage(
        workdir, settings.teacher, kinds=_KINDS, by=by, planned=planned
    )
    facts = ScoreFacts(
        teacher=settings.teacher, teacher_facts=parent.facts, code=code_digest()
    )
    manifest = Manifest(
        kind="score",
        settings={
            **source.settings(),
            "chunk_pairs": settings.chunk_pairs,
            "format": settings.format,
        },
        inputs={
            **prepared.inputs(parent.settings["role"], *pieces),
            settings.teacher: parent.key,
        },
        facts=facts.to_dict(),
    )
    return ScoreRun(settings, workdir, prepared, source, manifest)


def read_prepared(
    settings: config.Score, workdir: pathlib.Path, *, replace: bool = False
) -> Prepared:
    """The data of a scoring stage: prepared now, or as the teacher was trained on."""
    if settings.input:
        return _prepared_before(workdir, f"the score stage {settings.name!r}")
    return prepare(settings.data, settings.text, workdir, replace=replace)


def _prepared_before(workdir: pathlib.Path, by: str) -> Prepared:
    """What a teacher was trained on; its tokenizer and template read the new pairs."""
    manifest = manifests.require_stage(workdir, PREPARE, kinds=(PREPARE,), by=by)
    known = {one for one in config.Text.__dataclass_fields__}
    fields = {k: v for k, v in manifest.settings["text"].items() if k in known}
    return Prepared(workdir / PREPARE, manifest, config.Text(**fields))


def code_digest() -> str:
    """Digest of this package's source, which the chunks' receipts name."""
    folder = pathlib.Path(ranker.__file__).parent
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        sha.update(path.relative_to(folder).as_posix().encode())
        sha.update(path.read_bytes())
    return sha.hexdigest()[:16]


def score_chunks(
    settings: config.Score, workdir: pathlib.Path, *, replace: bool = False
) -> Manifest | None:
    """Scores the settings' splits, or their input, into chunks.

    Chunks that are there are kept, so an interrupted run resumes with the rest. The
    process that finds all chunks there proves them and finishes the stage.

    Returns:
      The finished stage's manifest; None when other processes still have chunks to
      score.

    Raises:
      ConfigError, DataError, StageError: with what is wrong and what to do.
      FloatingPointError: at a score that is not finite, naming chunk and pair.
    """
    settings = with_teacher(settings, workdir, replace=replace)
    prepared = read_prepared(settings, workdir, replace=replace)
    return execute(plan(settings, prepared, workdir), replace=replace)


def execute(run: ScoreRun, *, replace: bool = False) -> Manifest | None:
    """Runs a planned scoring stage; chunks that are there are kept."""
    settings = run.settings
    index, count = _worker(settings)
    # Two runs may not do the same part; other parts are other processes'.
    part = settings.name if count == 1 else f"{settings.name}.{index}-of-{count}"
    with contextlib.ExitStack() as stack:
        stack.callback(run.source.close)

        def begin() -> Manifest | None:
            # A folder of other settings is refused here, or moved aside.
            if manifests.is_done(run.folder, run.manifest, replace=replace):
                found = manifests.load_manifest(run.folder)
                assert found is not None
                same = ScoreFacts.of(found.facts).output == settings.output
                if same and jobs.is_there(run.output):
                    return found
            stack.enter_context(manifests.lock(run.workdir, part))
            return None

        return processes.first(begin) or _score(run)


def _score(run: ScoreRun) -> Manifest | None:
    settings, manifest = run.settings, run.manifest
    job = processes.first(
        lambda: jobs.open_job(
            run.output,
            manifest,
            run.source,
            size=settings.chunk_pairs,
            format=settings.format,
        )
    )
    missing = processes.first(job.missing)
    manifest.begin(run.folder)
    index, count = _worker(settings)
    mine = [number for number in missing if number % count == index]
    if missing:
        _score_chunks(run, job, mine)
    processes.meet()
    left = processes.first(job.missing)
    if left:
        print(
            f"[{settings.name}] this process is done; {len(left)} of "
            f"{len(job.chunks)} chunks are left to others",
            flush=True,
        )
        return None
    proof = processes.first(lambda: proofs.verify(job, cache=settings.cache))
    processes.first(lambda: _list_quarantined(settings, job, proof.quarantined))
    facts = dataclasses.replace(
        ScoreFacts.of(manifest.facts),
        output=settings.output,
        pairs=proof.pairs,
        quarantined=len(proof.quarantined),
        mean=proof.mean,
        std=proof.std,
        min=proof.min,
        max=proof.max,
    )
    return manifest.finish(run.folder, facts)


def with_teacher(
    settings: config.Score, workdir: pathlib.Path, *, replace: bool
) -> config.Score:
    """The settings with a stage as the teacher, where they name a checkpoint.

    The stage `teacher` is a manifest alone; evaluate and export know it like any other.

    Raises:
      ConfigError, DataError, ModelError, StageError: as `train`.
    """
    if "/" not in settings.teacher:
        return settings
    resolve_folder(settings.teacher)  # a wrong name is not its tokenizer's fault
    tokenizer = settings.text.teacher_tokenizer or settings.teacher
    text = dataclasses.replace(settings.text, teacher_tokenizer=tokenizer)
    stage = config.Train(
        data=settings.data,
        text=text,
        mesh=settings.mesh,
        name="teacher",
        model=config.Pretrained(path=settings.teacher, dtype=settings.dtype),
        role="teacher",
        objective=config.Rank(),
        optim=config.Optim(learning_rate=1.0, warmup=0),  # no step is made
        batch=config.Batch(size=1),
        loop=config.Loop(steps=0),
    )
    adopt(stage, workdir, replace=replace)
    return dataclasses.replace(settings, text=text, teacher=stage.name)


def verify_chunks(settings: config.Score, workdir: pathlib.Path) -> proofs.Proof:
    """Proves the scores of these settings against their input, pair by pair.

    Raises:
      DataError, StageError: naming what is not as it should be.
    """
    settings = with_teacher(settings, workdir, replace=False)
    run = plan(settings, read_prepared(settings, workdir), workdir)
    with contextlib.closing(run.source):
        job = jobs.load_job(run.output)
        job.check(run.manifest)
        return proofs.verify(job, source=run.source, cache=settings.cache)


def _worker(settings: config.Score) -> tuple[int, int]:
    """(index, count) among the processes, or groups of them, that share the work."""
    if settings.process_count:
        return settings.process_index, settings.process_count
    if settings.devices == "all":
        return 0, 1
    return processes.index(), processes.count()


def _score_chunks(run: ScoreRun, job: jobs.Job, mine: Sequence[int]) -> None:
    settings = run.settings
    devices = jax.local_devices() if settings.devices == "local" else jax.devices()
    mesh = sharding.make_mesh(settings.mesh, devices)
    teacher = load_trained(
        run.workdir,
        settings.teacher,
        run.prepared,
        mesh,
        kinds=_KINDS,
        by=run.by,
        scoring=True,
    )
    scorer = _Scorer(settings, teacher, run.prepared)
    if not mine:  # loading is what all processes do together
        return
    total = sum(job.chunks[number].pairs for number in mine)
    progress = _Progress(Reporter(None, settings.name, total=total, unit="pair"))
    code = code_digest()
    with _behind() as behind:
        for number, ready in _ahead(run.source, job, mine, scorer.begin):
            start = time.monotonic()
            content, scores = scorer(job, number, ready, progress)
            if not mesh.is_multi_process or processes.leads():
                behind(
                    jobs.save_chunk,
                    job,
                    number,
                    content,
                    scores,
                    seconds=round(time.monotonic() - start, 3),
                    chips=mesh.size,
                    device=mesh.devices.flat[0].device_kind,
                    tokens=progress.chunk_tokens,
                    code=code,
                )
            progress.finish(job.chunks[number].pairs)
        progress.end()


@contextlib.contextmanager
def _behind() -> Iterator[Callable[..., None]]:
    """What calls a function in a thread while the caller goes on: one at a time.

    What a call raises is raised by the next one, or at the end.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="saving") as pool:
        last: list[Future[None]] = []

        def behind(call: Callable[..., None], *given: Any, **named: Any) -> None:
            if last:
                last.pop().result()
            last.append(pool.submit(call, *given, **named))

        yield behind
        if last:
            last.pop().result()


@dataclass(frozen=True)
class _Ready:
    """A chunk that can be scored: the pairs that have room, and their first batches."""

    content: ChunkPairs
    encoder: ListEncoder
    batches: NumberedBatches


def _ahead(
    source: Input,
    job: jobs.Job,
    mine: Sequence[int],
    begin: Callable[[ChunkPairs], _Ready],
) -> Iterator[tuple[int, _Ready]]:
    """Each chunk; the next one is read and begun while one is scored."""

    def read(number: int) -> _Ready:
        return begin(source.read(job.chunks[number]))

    with ThreadPoolExecutor(1, thread_name_prefix="chunks") as pool:
        reading = pool.submit(read, mine[0])
        for number, after in zip(mine, [*mine[1:], None], strict=True):
            ready = reading.result()
            if after is not None:
                reading = pool.submit(read, after)
            yield number, ready


class _Scorer:
    """A teacher that scores one chunk after another."""

    def __init__(self, settings: config.Score, teacher: Trained, prepared: Prepared):
        tokenizer = prepared.tokenizer(teacher.role)
        self.settings, self.teacher, self.tokenizer = settings, teacher, tokenizer
        # Texts of another input are read once, and tokenised then.
        self.tokens = None if settings.input else corpus_tokens(prepared, tokenizer)
        self.score = make_score(teacher.network)
        _, why = can_share(teacher.model, tokenizer.template, teacher.length)
        if why:
            print(f"[{settings.name}] {why}", flush=True)

    def begin(self, content: ChunkPairs) -> _Ready:
        """Sets long queries aside, and begins to make batches of the other pairs."""
        content = _without_long_queries(content, self.tokenizer, self.teacher.length)
        tokens = None
        if self.tokens is not None and content.rows is not None and content.lists:
            places = np.concatenate([one.documents for one in content.lists])
            tokens = self.tokens.of(places, content.rows)
        encoder = self.teacher.encoder_of(content.corpus, self.tokenizer, tokens)
        batches = begin_batches(
            self.teacher.network, content.lists, encoder, rows=self.settings.rows
        )
        return _Ready(content, encoder, batches)

    def __call__(
        self, job: jobs.Job, number: int, ready: _Ready, progress: "_Progress"
    ) -> tuple[ChunkPairs, np.ndarray]:
        """The pairs that have a score, and their scores; the others are set aside.

        Raises:
          DataError, FloatingPointError: when more pairs than the settings allow cannot
            be scored.
        """
        content = ready.content
        self._check(job, number, content.bad, DataError)
        encoder = ready.encoder
        scores = self._scores(content.lists, encoder, progress, ready.batches)
        wrong = np.flatnonzero(~np.isfinite(scores))
        if len(wrong) and self.settings.quarantine:
            # Texts that share a row with a poisoned one are scored again, alone.
            for place in wrong[: self.settings.quarantine + 1]:
                scores[place] = self._scores([_alone(content, place)], encoder)[0]
            wrong = np.flatnonzero(~np.isfinite(scores))
        if len(wrong):
            bad = [
                Bad(
                    int(content.pairs[place]),
                    content.query_ids[place],
                    content.document_ids[place],
                    f"the score is {scores[place]}",
                )
                for place in wrong
            ]
            content = dataclasses.replace(content, bad=[*content.bad, *bad])
            self._check(job, number, bad, FloatingPointError)
            self._check(job, number, content.bad, DataError)
            content, scores = _without(content, scores, wrong)
        return content, scores

    def _scores(
        self,
        lists: Sequence[RankedList],
        encoder: ListEncoder,
        progress: "_Progress | None" = None,
        batches: NumberedBatches | None = None,
    ) -> np.ndarray:
        return score_lists(
            self.score,
            self.teacher.params,
            self.teacher.network,
            lists,
            encoder,
            rows=self.settings.rows,
            progress=progress.batch if progress else None,
            finite=False,
            batches=batches,
            idle=progress.idle if progress else None,
        )

    def _check(
        self, job: jobs.Job, number: int, bad: Sequence[Bad], error: type[Exception]
    ) -> None:
        allowed = self.settings.quarantine
        if len(bad) <= allowed:
            return
        first = bad[0]
        raise error(
            f"chunk {job.name(number)}: {len(bad)} pairs cannot be scored, and "
            f"{allowed} may be set aside (--config.quarantine); the first is pair "
            f"{first.pair}, query {first.query_id!r}, document {first.document_id!r}: "
            f"{first.reason}"
        )


def _alone(content: ChunkPairs, place: int):
    """The list of one pair of a chunk."""
    for record in content.lists:
        if place < len(record.documents):
            return dataclasses.replace(
                record, documents=record.documents[place : place + 1]
            )
        place -= len(record.documents)
    raise AssertionError("no such pair")


def _without(
    content: ChunkPairs, scores: np.ndarray, places: np.ndarray
) -> tuple[ChunkPairs, np.ndarray]:
    """The pairs and scores at other than these places; the lists are used up."""
    keep = np.ones(len(content.pairs), bool)
    keep[places] = False
    kept = np.flatnonzero(keep)
    content = dataclasses.replace(
        content,
        lists=[],
        pairs=content.pairs[kept],
        query_ids=[content.query_ids[i] for i in kept],
        document_ids=[content.document_ids[i] for i in kept],
        rows=None if content.rows is None else content.rows[kept],
    )
    return content, scores[kept]


def _without_long_queries(
    content: ChunkPairs, tokenizer: Tokenizer, length: int
) -> ChunkPairs:
    """Sets pairs aside whose query leaves no room for a document in a row."""
    queries = tokenizer.queries([one.query for one in content.lists])
    fits = [len(query) + len(tokenizer.tail) < length for query in queries]
    if all(fits):
        return content
    sizes = [len(one.documents) for one in content.lists]
    long = np.flatnonzero(~np.repeat(fits, sizes))
    reason = f"the query has no room for a document in {length} tokens"
    bad = [
        Bad(
            int(content.pairs[i]), content.query_ids[i], content.document_ids[i], reason
        )
        for i in long
    ]
    lists = [one for one, fit in zip(content.lists, fits, strict=True) if fit]
    content, _ = _without(content, np.zeros(len(content.pairs)), long)
    return dataclasses.replace(content, lists=lists, bad=[*content.bad, *bad])


def _list_quarantined(
    settings: config.Score, job: jobs.Job, bad: Sequence[Bad]
) -> None:
    if bad:
        path = jobs.save_quarantine(job, bad)
        print(
            f"[{settings.name}] {len(bad)} pairs were set aside; {path} lists them",
            flush=True,
        )


class _Progress:
    """Counts pairs over chunks, and reports how far this process is."""

    def __init__(self, reporter: Reporter):
        self.reporter, self.done, self.chunk_tokens = reporter, 0, 0
        self.idle = Idle()
        reporter.start(0)

    def batch(self, pairs: int, tokens: int) -> None:
        """`pairs` of the chunk are scored, and `tokens` tokens more."""
        self.chunk_tokens += tokens
        self.reporter.now_and_then(self.done + pairs, tokens)

    def finish(self, pairs: int) -> None:
        """A chunk of `pairs` pairs is written."""
        self.done += pairs
        self.chunk_tokens = 0

    def end(self) -> None:
        """Says how far the devices had work."""
        self.reporter.note(
            f"the devices had work for {self.idle.busy_share:.1%} or more of "
            f"{duration(self.idle.seconds)}, from the first batch to the last"
        )
