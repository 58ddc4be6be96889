"""What a training stage reads: its batches, and what it is measured on meanwhile."""

import collections
import contextlib
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from ranker import config, errors, manifests, processes
from ranker.batch import PackedBatch
from ranker.data import pairs, pipeline
from ranker.data.clicks import repeat
from ranker.data.impressions import load_click_lists
from ranker.data.prepare import NAME as PREPARE
from ranker.data.prepare import Prepared
from ranker.data.text import Tokenizer
from ranker.data.tokens import TokenStore, key_of, make_store
from ranker.data.triples import Shuffled, Triples
from ranker.losses.reduction import WeightedSum
from ranker.metrics.agreement import fit_affine
from ranker.metrics.runs import means
from ranker.scoring.targets import Joined, Targets, load_targets
from ranker.training.judge import judged_lists
from ranker.training.run import TrainingRun
from ranker.training.scorer import (
    device_batch,
    in_step,
    make_score,
    score_lists,
    shards_of,
)

STATES = 1024  # of the last batches, kept

MeasureParams = Callable[[Any], dict[str, float]]  # parameters -> metrics


Feed = Callable[[pipeline.Shards], "Batches"]  # endless batches, from the beginning


def open_feed(run: TrainingRun, *, trains: bool = True) -> Feed:
    """What makes the training batches of the stage; it reads what they are made of.

    It raises ConfigError when a micro-batch does not divide over the shards.

    Args:
      run: the stage.
      trains: keeps the corpus's tokens in the workdir, and says what is unusual; every
        process calls it together. Without, nothing is written, nor a device started.

    Raises:
      ConfigError, StageError: when there is nothing to learn from.
    """
    settings, prepared = run.settings, run.prepared
    common: dict[str, Any] = dict(batch=settings.batch, seed=settings.seed)
    length = settings.text.of(run.role, "length")
    if isinstance(settings.objective, config.Language):
        clicks: Any = prepared.clicks("train")
        clicks = _filled(clicks, settings, "click of the split train")
        if settings.objective.repeat != "once":
            clicks = repeat(clicks, settings.objective)
            if trains and processes.leads():
                print(f"[{settings.name}] {clicks.report()}", flush=True)
        tokenizer = prepared.tokenizer(run.role)
        return lambda shards: Batches(
            pipeline.text_batches(
                clicks, tokenizer, length=length, shards=shards, **common
            ),
            pipeline.shuffled_rows(len(clicks), settings.seed),
            lambda row: clicks[row].query,
            size=len(clicks),
        )
    encoder = _encoder(run, stored=trains)
    template = encoder.tokenizer.template
    _, why = pairs.can_share(run.origin.model, template, encoder.length)
    if why and trains and processes.leads():
        print(f"[{settings.name}] {why}", flush=True)
    if isinstance(settings.objective, config.Distillation):
        if settings.objective.triples:
            if settings.text.passages(run.role).most > 1:
                raise config.ConfigError(
                    f"the stage {settings.name!r} streams objective.triples, which are "
                    f"one row each; set text.{run.role}_passages to 1"
                )
            return _streamed(settings, prepared.tokenizer(run.role), length)
        lists, common["targets"] = scored_lists(settings, prepared, run.workdir)
    else:
        lists = rank_lists(settings, prepared, run.workdir, says=trains)
    lists = _filled(lists, settings, "list with documents to learn from")
    common["impressions"] = bool(settings.click_lists)
    return lambda shards: Batches(
        pipeline.list_batches(lists, encoder, shards=shards, **common),
        pipeline.shuffled_rows(len(lists), settings.seed),
        lambda row: lists[row].query_id,
        size=len(lists),
    )


def _streamed(settings: config.Train, tokenizer: Tokenizer, length: int) -> Feed:
    """Batches of pairs that lie in Parquet files with the teacher's scores."""
    assert isinstance(settings.objective, config.Distillation)
    triples = Triples(settings.objective.triples)
    order = Shuffled(triples, settings.seed)
    return lambda shards: Batches(
        pipeline.triple_batches(
            order, tokenizer, batch=settings.batch, length=length, shards=shards
        ),
        order.row,
        lambda row: f"row {row} of the triples",
        size=len(triples),
    )


def rank_lists(
    settings: config.Train,
    prepared: Prepared,
    workdir: pathlib.Path,
    *,
    says: bool = True,
) -> Any:
    """The judged lists, those of clicks, or both, one after the other.

    With `says` the first process prints what has become of the clicks.

    Raises:
      ConfigError, DataError, StageError: with what is wrong and what to do.
    """
    sources: list[Any] = []
    if settings.negatives:
        sources = [judged_lists(workdir / settings.negatives, "train")]
    elif settings.judged_lists:
        sources = [prepared.lists("train")]
    if settings.click_lists:
        held_out = Joined([prepared.lists(split) for split in ("dev", "test")])
        found = load_click_lists(
            pathlib.Path(settings.click_lists), prepared.corpus(), held_out
        )
        if says and processes.leads():
            print(f"[{settings.name}] {found.report()}", flush=True)
        assert isinstance(settings.objective, config.Rank)
        if settings.objective.position_bias and not found.num_placed:
            raise config.ConfigError(
                f"objective.position_bias is {settings.objective.position_bias}, and "
                f"no list of {settings.click_lists} says where its results were shown; "
                "write the lists by python -m ranker.online impressions --by page"
            )
        sources.append(found)
    return sources[0] if len(sources) == 1 else Joined(sources)


def _filled(source: Any, settings: config.Train, what: str) -> Any:
    """The source; raises `ConfigError` where it holds nothing."""
    if not len(source):
        raise config.ConfigError(f"the stage {settings.name!r} finds no {what}")
    return source


class Batches:
    """Training batches of this process; their state is that of all processes.

    What is packed next depends on what was packed before, so a place in the stream is a
    state, not a number. Those of the last batches are kept, for a loop that finds late
    that it wants to go back.
    """

    def __init__(
        self,
        iterator: grain.DatasetIterator,
        row: Callable[[int], int],
        name: Callable[[int], str],
        *,
        size: int,
    ):
        """Batches of `iterator`.

        Args:
          iterator: of pipeline's.
          row: of the source, at each index of the iterator's order.
          name: of a row of its source.
          size: records of the source, an epoch.
        """
        self._iterator, self.size = iterator, size
        self._rows = functools.partial(pipeline.rows_between, row=row)
        self._name = name
        self._states = collections.deque([iterator.get_state()], maxlen=STATES + 1)

    def __next__(self) -> PackedBatch:
        batch = next(self._iterator)
        self._states.append(self._iterator.get_state())
        return batch

    @property
    def epoch(self) -> float:
        """How often the source has been packed; told by its first shard here."""
        state = self._states[-1]
        dealt: dict[str, list[int]] = state["dealt"]
        first, *waiting = dealt[min(dealt, key=int)]
        return (first - state["shards"] * len(waiting)) / self.size

    def names(self) -> list[str]:
        """Names of the records in the last batch, of this process's data shards."""
        before, after = self._states[-2], self._states[-1]
        return [self._name(row) for row in self._rows(before, after)]

    def get_state(self, back: int = 0) -> dict[str, Any]:
        """What `set_state` resumes from; every process asks for it together.

        It can be written as JSON. Each data shard's part is in it, so it does not
        matter which process made that shard's rows, or how many processes there are.

        Args:
          back: the state before the last `back` batches, at most `STATES`.
        """
        state = dict(self._states[-1 - back])
        if jax.process_count() == 1:
            return state
        dealt: dict[str, list[int]] = {}
        mine = np.frombuffer(json.dumps(state["dealt"]).encode(), np.uint8)
        sizes = multihost_utils.process_allgather(np.array(len(mine)))
        padded = np.zeros(int(np.max(sizes)), np.uint8)
        padded[: len(mine)] = mine
        everyone = np.asarray(multihost_utils.process_allgather(padded))
        for row, size in zip(everyone, np.asarray(sizes).tolist(), strict=True):
            dealt |= json.loads(row[:size].tobytes())
        return {**state, "dealt": dealt}

    def set_state(self, state: dict[str, Any]) -> None:
        """Resumes from a state; on another number of data shards, with what is left."""
        self._iterator.set_state(state)
        self._states.clear()
        self._states.append(self._iterator.get_state())

    def close(self) -> None:
        """Stops the threads that read ahead."""
        self._iterator.close()


def _encoder(run: TrainingRun, *, stored: bool = True) -> pairs.ListEncoder:
    tokens = run.settings.text.of(run.role, "length")
    tokenizer = run.prepared.tokenizer(run.role)
    shared, _ = pairs.can_share(run.origin.model, tokenizer.template, tokens)
    return pairs.ListEncoder(
        run.prepared.corpus(),
        tokenizer,
        tokens,
        shared=shared,
        tokens=corpus_tokens(run.prepared, tokenizer) if stored else None,
        passages=run.settings.text.passages(run.role),
    )


def corpus_tokens(prepared: Prepared, tokenizer: Tokenizer) -> TokenStore:
    """The corpus's token ids; made once a workdir, by the first process of a run.

    Every process of the run calls it together.
    """
    folder = prepared.folder / "tokens"
    key = key_of(prepared.inputs("corpus")[f"{PREPARE}/corpus"], tokenizer)

    def make() -> TokenStore:
        return make_store(folder, key, prepared.corpus(), tokenizer)

    processes.first(lambda: bool(make()))
    return make()  # where hosts share no files, each makes its own


def scored_lists(
    settings: config.Train, prepared: Prepared, workdir: pathlib.Path
) -> tuple[Joined, Targets]:
    """Every list that the teacher has scored, and its scores on the scale asked for.

    Raises:
      ConfigError, DataError, StageError: with what is wrong and what to do.
    """
    manifest = manifests.require_stage(
        workdir, settings.scores, kinds=("score",), by=f"the stage {settings.name!r}"
    )
    splits = manifest.settings.get("splits")
    if splits is None:
        raise errors.StageError(
            f"the stage {settings.name!r} learns from the scores of prepared splits, "
            f"and {settings.scores!r} holds those of another input; score the splits "
            "too (without --config.input), or name their stage"
        )
    place = workdir / settings.scores
    read = prepared.lists
    if "judge" in manifest.settings:
        read = functools.partial(judged_lists, place)
    lists = {split: read(split) for split in splits}
    facts = manifests.ScoreFacts.of(manifest.facts)
    targets = load_targets(facts.output or place, lists)
    objective = settings.objective
    assert isinstance(objective, config.Distillation)
    scale, shift = _target_scale(objective, manifest, lists, targets)
    return Joined(list(lists.values())), targets.scaled(scale, shift)


def _target_scale(
    objective: config.Distillation,
    manifest: manifests.Manifest,
    lists: Mapping[str, Any],
    targets: Targets,
) -> tuple[float, float]:
    """(scale, shift) that takes raw teacher scores to what the student learns.

    Raises:
      ConfigError: for `labels`, when no judged list was scored, or all its scores or
        grades are equal.
    """
    if objective.target_scale in ("data", "list"):  # objectives.py sees to each list
        facts = manifests.ScoreFacts.of(manifest.facts)
        std = max(facts.std, 1e-6)
        return 1 / std, -facts.mean / std
    if objective.target_scale == "labels":
        splits = list(lists)
        if "train" not in splits:
            raise config.ConfigError(
                "objective.target_scale=labels fits the teacher's scores to the grades "
                f"of the split 'train', but the teacher scored {splits}; score 'train' "
                "too (Score.splits), or choose another scale"
            )
        before = sum(len(lists[one]) for one in splits[: splits.index("train")])
        train = lists["train"]
        grades = np.concatenate([train[i].labels for i in range(len(train))])
        scores = np.concatenate(targets[before : before + len(train)])
        slope, intercept = fit_affine(scores, grades)
        if not slope > 0:
            raise config.ConfigError(
                "objective.target_scale=labels: the line through the teacher's scores "
                f"and the grades of 'train' has the slope {slope:.3g}, so higher "
                "scores do not mean higher grades; choose another scale, or a better "
                "teacher"
            )
        return slope, intercept
    return 1.0, 0.0


def make_measure(run: TrainingRun) -> MeasureParams:
    """What measures parameters on dev; {} without dev.

    The language loss, or NDCG@5 and the measure that `loop.best_metric` names. A value
    that no query of dev has (NaN) is left out.
    """
    if isinstance(run.settings.objective, config.Language):
        return _language_measure(run)
    encoder, dev = _encoder(run), run.prepared.lists("dev")
    dev = _first(dev, run.settings.loop.eval_queries)
    score, batch = make_score(run.network), run.settings.batch
    best = run.settings.loop.best_measure
    names = ("ndcg@5",) if best in ("", "ndcg@5") else ("ndcg@5", best)
    # What fits while training fits here: the rows of a micro-batch.
    rows = batch.size // batch.accumulate * batch.list_size * encoder.passages.most

    def measure(params: Any) -> dict[str, float]:
        if not len(dev):
            return {}
        scores = score_lists(score, params, run.network, dev, encoder, rows=rows)
        found = means(dev, encoder.corpus, scores, names)
        return {f"dev_{k}": value for k, value in found.items() if value == value}

    return measure


def _first(source: Any, count: int) -> Any:
    """The first `count` records; 0: all."""
    if not count or count >= len(source):
        return source
    return [source[index] for index in range(count)]


def _language_measure(run: TrainingRun) -> MeasureParams:
    settings, prepared, network = run.settings, run.prepared, run.network
    texts = _first(prepared.clicks("dev"), settings.loop.eval_queries)
    shards, objective = shards_of(network), run.objective
    one = config.Batch(size=settings.batch.size // settings.batch.accumulate)

    @jax.jit
    def loss(params: Any, batch: PackedBatch) -> WeightedSum:
        model = nnx.merge(network.graphdef, params)
        return objective.parts(model, batch, None)["language"]

    def measure(params: Any) -> dict[str, float]:
        if not len(texts):
            return {}
        batches, nothing = pipeline.every_text(
            texts,
            prepared.tokenizer(run.role),
            batch=one,
            length=settings.text.of(run.role, "length"),
            shards=shards,
        )
        with contextlib.closing(batches):
            parts = [
                loss(params, device_batch(batch, network, leading=0))
                for batch in in_step(batches, nothing)
            ]
        total = sum(parts[1:], start=parts[0])
        return {"dev_language": float(total.mean())}

    return measure
