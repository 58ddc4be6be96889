"""Fewer bits, accepted by ranking quality: candidates, the gate, and what is recorded.

A correlation of 0.9997 still swaps documents. So a file of less precision is accepted
when its ranking is *not inferior* on held-out queries: the upper end of a one-sided
interval of its loss lies below a margin. Too few queries, and nothing can be shown;
then it is refused too, with the number that would do.

Several files tried on the same queries would be several chances to accept one that
loses the margin. So they are tried in an order that train rows decide, the one that
changes scores least first, and none after the first that is refused: a fixed sequence
(Maurer, Hothorn and Lehmacher, 1995), which holds the error of all of them together at
that of one.
"""

import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float
from scipy import stats

from ranker import config, storage
from ranker.data.text import Segment
from ranker.errors import ModelError
from ranker.metrics import ranking
from ranker.serving import contract, quantisation, runtimes
from ranker.serving.contract import Contract

_SAMPLES = 4000  # of the bootstrap
_CONFIDENCE = 0.95
_Z = 1.6449  # its one-sided normal quantile
_ADDED = 3  # queries that lose what a changed one does
_COUNTED = 10  # changed queries, below which their number is bounded too
_FEWEST = 50  # queries, below which no interval is worth its name
_UNSEEN_LOSS = 0.1  # of a query that changes, where none in the sample did
_CHUNK = 1 << 22  # numbers drawn at once
_TIMED = 200  # pairs that speed is measured on, at most
_CALIBRATION_ROWS = 200

_say = functools.partial(print, flush=True)

T = TypeVar("T")
Name = runtimes.Name
Precision = runtimes.Precision


@dataclass(frozen=True)
class Graded:
    """A held-out query: its candidates as rows, and their labels."""

    segments: list[Segment]
    labels: np.ndarray  # float32, of each candidate
    counts: Sequence[int] = ()  # rows of each candidate; empty: one each


# --- the gate -------------------------------------------------------------------------


def upper_bound(
    losses: Float[np.ndarray, " Q"], *, seed: int = 0, confidence: float = _CONFIDENCE
) -> float:
    """Upper end of a one-sided interval of the mean loss: paired bootstrap of t.

    Studentised (Hall, 1988): most queries lose nothing and a few lose much, and a plain
    percentile interval of such losses is too short. A small sample lacks its worst
    queries, so three are added that lose what a changed one gains or loses (root mean
    square). Where fewer than ten changed, their number is uncertain too: its Poisson
    limit, times that size, is the least bound. Where none did, the limit is 3, and each
    is taken to lose 0.1.

    Args:
      losses: of each query, reference less candidate.
      seed: of the resampling.
      confidence: share of samples whose interval holds the true mean.

    Returns:
      Infinite where too few queries changed to bound it.
    """
    changed = losses[losses != 0]
    if not len(changed) or losses.std() == 0:
        return float(losses.mean()) + 3 * _UNSEEN_LOSS / len(losses)
    size = float(np.sqrt(np.mean(changed**2)))
    losses = np.append(losses, [size] * _ADDED)
    n = len(losses)
    mean, error = float(losses.mean()), float(losses.std(ddof=1)) / math.sqrt(n)
    draw = np.random.default_rng(seed)
    t = np.empty(_SAMPLES)
    rows = max(_CHUNK // n, 1)
    for first in range(0, _SAMPLES, rows):
        picked = losses[draw.integers(0, n, (min(rows, _SAMPLES - first), n))]
        errors = picked.std(axis=1, ddof=1) / math.sqrt(n)
        gap = picked.mean(axis=1) - mean
        with np.errstate(divide="ignore", invalid="ignore"):
            found = gap / errors
        found[errors == 0] = np.where(gap[errors == 0] < 0, -np.inf, np.inf)
        t[first : first + rows] = found
    low = float(np.quantile(t, 1 - confidence, method="lower"))
    bound = mean - low * error
    if len(changed) < _COUNTED:
        most = stats.chi2.ppf(confidence, 2 * len(changed) + 2) / 2
        bound = max(bound, float(most) * size / n)
    return bound


def queries_needed(
    losses: Float[np.ndarray, " Q"], margin: float, upper: float = math.inf
) -> int:
    """About how many queries would show that the true mean loss is below the margin.

    Args:
      losses: of each query.
      margin: mean loss that must be ruled out.
      upper: end of these losses' interval, where there is one: its width shrinks with
        the root of the number of queries.
    """
    room = max(margin - max(float(losses.mean()), 0.0), margin / 10)
    if math.isfinite(upper):
        width = max(upper - float(losses.mean()), 0.0)
        return math.ceil(len(losses) * max((width / room) ** 2, 1.0))
    spread = float(losses.std(ddof=1)) if len(losses) > 1 else 0.0
    return max(
        math.ceil((_Z * spread / room) ** 2), math.ceil(3 * _UNSEEN_LOSS / margin)
    )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate found of one candidate."""

    accepted: bool
    reason: str
    value: float  # of the measure
    reference: float  # of float32
    loss: float
    upper: float  # of the interval of the loss; compared with the margin
    queries: int


def loss_verdict(
    reference: Float[np.ndarray, " Q"],
    candidate: Float[np.ndarray, " Q"],
    margin: float,
    seed: int = 0,
) -> Verdict:
    """Whether a candidate's ranking is not inferior to the reference's.

    Args:
      reference: the measure of each query, by float32.
      candidate: the same by the candidate.
      margin: mean loss that must be ruled out.
      seed: of the bootstrap.
    """
    losses = reference - candidate
    n, loss = len(losses), float(losses.mean()) if len(losses) else 0.0
    upper = upper_bound(losses, seed=seed) if n >= _FEWEST else math.inf
    if n < _FEWEST:
        needed = max(queries_needed(losses, margin), _FEWEST) if n > 1 else _FEWEST
        reason = f"{n} queries with a relevant document are too few; about {needed} do"
    elif upper < margin:
        reason = f"the loss is below {margin:g} (at most {upper:.4f})"
    elif loss < margin:
        reason = (
            f"a loss of {margin:g} cannot be ruled out: it is {loss:.4f}, at most "
            f"{upper:.4f}; about {queries_needed(losses, margin, upper)} queries "
            f"would tell, and there are {n}"
        )
    else:
        reason = f"it loses {loss:.4f}, and {margin:g} may be lost"
    return Verdict(
        accepted=bool(upper < margin),
        reason=reason,
        value=float(candidate.mean()) if n else math.nan,
        reference=float(reference.mean()) if n else math.nan,
        loss=loss,
        upper=upper,
        queries=n,
    )


def until_refused(tried: Iterable[T], accepted: Callable[[T], bool]) -> Iterator[T]:
    """What is tried, up to the first that is refused and with it.

    The first whose true loss is the margin or more is accepted as seldom as it would be
    alone, and none after it is accepted unless it was. The order must not come from the
    queries that decide.
    """
    for one in tried:
        yield one
        if not accepted(one):
            return


# --- candidates -----------------------------------------------------------------------


@dataclass(frozen=True)
class Reduced:
    """A file of less precision, and the runtime that reads it."""

    precision: Precision
    runtime: Name
    # Source, target and rows of train; None: the weights themselves are read.
    make: Callable[[pathlib.Path, pathlib.Path, Sequence[Segment]], None] | None


CANDIDATES: tuple[Reduced, ...] = (
    Reduced("bfloat16", "openvino", quantisation.to_bfloat16),
    Reduced("int8", "openvino", quantisation.to_static_int8),
    Reduced("int8", "onnxruntime", quantisation.to_static_int8),
    Reduced("int8_mixed", "onnxruntime", quantisation.to_mixed_int8),
    Reduced("int8_dynamic", "onnxruntime", quantisation.to_dynamic_int8),
)
# A GPU or TPU has units for it.
ON_DEVICE = Reduced("bfloat16", "jax", None)


def reduced_files(precision: str) -> list[Reduced]:
    """Those to try for a precision that was asked for, of what is installed.

    Where there is a GPU or TPU, bfloat16 is tried there and not on the CPU.

    Raises:
      ModelError: when none can be tried.
    """
    wanted = {
        "bfloat16": ("bfloat16",),
        "int8": ("bfloat16", "int8", "int8_mixed", "int8_dynamic"),
    }[precision]
    on_device = runtimes.device() != "cpu"
    found = [
        one
        for one in CANDIDATES
        if one.precision in wanted
        and runtimes.installed(one.runtime)
        and not (on_device and one.precision == "bfloat16")
    ]
    found += [ON_DEVICE] if on_device else []
    if not found:
        raise ModelError(
            f"the precision {precision} needs a runtime that is not installed: pip "
            "install 'ranker[export,openvino]'"
        )
    return found


# --- all of it ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Made:
    """A candidate's file, and what rows of train show of it."""

    candidate: Reduced
    path: pathlib.Path
    noise: float  # std of what it changes in a score, in std of the scores
    speed: float  # tokens a second of one thread
    speedup: float  # speed, in float32's on the same device

    @property
    def name(self) -> str:
        """As it is reported."""
        return f"{self.candidate.precision} by {self.candidate.runtime}"


def accept(
    folder: pathlib.Path,
    promise: Contract,
    settings: config.Onnx,
    lists: Sequence[Graded],
    rows: Sequence[Segment],
    *,
    tried: Sequence[Reduced] | None = None,
    report: Callable[[str], None] = _say,
) -> Contract:
    """Tries candidates in turn until one is refused, and records what was tried.

    Those that beat float32 come first; of these, the one that changes the scores of
    `rows` least. Of each precision, the fastest accepted file is kept.

    Args:
      folder: of the export, with its float32 graph.
      promise: its contract.
      settings: which precision, measure and margin.
      lists: held-out queries, which no candidate was made from.
      rows: of train, that candidates are calibrated on and put in order by; empty: they
        are tried as given.
      tried: candidates; None: those of the precision that are installed.
      report: takes a line for each candidate.

    Returns:
      The contract with what was found; it is not saved.

    Raises:
      ModelError: when nothing can be tried.
    """
    tried = reduced_files(settings.precision) if tried is None else tried
    lists = [one for one in lists if (one.labels > 0).any()]
    flat = [segment for one in lists for segment in one.segments]
    reference = runtimes.open_runtime(folder, "onnxruntime", "float32")
    expected = runtimes.score_pairs(reference, flat)
    few = list(rows)[:: max(len(rows) // _CALIBRATION_ROWS, 1)][:_CALIBRATION_ROWS]
    order = sorted(
        _made(folder, tried, few, few or flat, report),
        key=lambda one: (one.speedup < 1, one.noise),
    )

    def judged(one: _Made) -> tuple[_Made, dict[str, Any]]:
        opened = _open(one.candidate, folder, one.path, reference.vocab_size)
        record = _record(folder, promise, settings, lists, (expected, opened), one)
        report(
            f"[export] {one.name}: "
            f"{'accepted' if record['accepted'] else 'refused'}: {record['reason']}; "
            f"{settings.measure} {record['value']:.4f} ({record['reference']:.4f} in "
            f"float32), {one.speedup:.2f} times as fast"
        )
        return one, record

    found: dict[str, dict[str, Any]] = {}
    done = list(until_refused(map(judged, order), lambda one: one[1]["accepted"]))
    for one, record in done:
        known = found.get(one.candidate.precision)
        if known is None or (record["accepted"], one.speed) > (
            known["accepted"],
            known["speed"],
        ):
            found[one.candidate.precision] = record
    for one in order[len(done) :]:
        report(f"[export] {one.name}: not tried, since {done[-1][0].name} was refused")
    for one in order:
        if one.candidate.make and not _accepted(found, one.candidate.precision):
            one.path.unlink(missing_ok=True)
    return dataclasses.replace(promise, precisions=found)


def _accepted(found: dict[str, dict[str, Any]], precision: str) -> bool:
    return found.get(precision, {}).get("accepted", False)


def _record(
    folder: pathlib.Path,
    promise: Contract,
    settings: config.Onnx,
    lists: Sequence[Graded],
    scored: tuple[np.ndarray, Any],
    made: _Made,
) -> dict[str, Any]:
    """What the contract says of a candidate.

    Args:
      folder: of the export.
      promise: its contract.
      settings: measure and margin.
      lists: held-out queries.
      scored: their rows' scores in float32, and the candidate's runtime.
      made: the candidate.
    """
    expected, opened = scored
    candidate = made.candidate
    scores = runtimes.score_pairs(
        opened, [segment for one in lists for segment in one.segments]
    )
    before, after = (
        _per_query(lists, one, settings.measure) for one in (expected, scores)
    )
    verdict = loss_verdict(before, after, settings.margin)
    golden = np.array([one.score for one in promise.golden], np.float32)
    golden_rows = [golden_row(promise, one) for one in promise.golden]
    return {
        **dataclasses.asdict(verdict),
        "upper": min(verdict.upper, 1e9),
        "runtime": candidate.runtime,
        "digest": folder_digest(folder, candidate.runtime, candidate.precision),
        "measure": settings.measure,
        "margin": settings.margin,
        "confidence": _CONFIDENCE,
        "kendall_tau": _tau(lists, expected, scores),
        "new_ties": _new_ties(lists, expected, scores),
        "top_changed": _top_changed(lists, expected, scores),
        "largest_difference": float(
            np.abs(runtimes.score_pairs(opened, golden_rows) - golden).max()
        ),
        "noise": made.noise,
        "speed": made.speed,
        "speedup": made.speedup,
        "cpu_flags": runtimes.cpu_flags() if candidate.make else [],
        "device": "cpu" if candidate.make else runtimes.device(),
    }


def _made(
    folder: pathlib.Path,
    tried: Sequence[Reduced],
    rows: Sequence[Segment],
    timed: Sequence[Segment],
    report: Callable[[str], None],
) -> Iterator[_Made]:
    """Candidates with their files; one that cannot be made is reported and left out."""
    source = folder / runtimes.FILES["float32"]
    reference = runtimes.open_runtime(folder, "onnxruntime", "float32")
    expected = runtimes.score_pairs(reference, rows)
    speeds = {"cpu": speed_of(reference, timed)}
    written: set[str] = set()
    for candidate in tried:
        path = folder / runtimes.FILES[candidate.precision]
        try:
            if candidate.make and candidate.precision not in written:
                candidate.make(source, path, rows)
                written.add(candidate.precision)
            opened = _open(candidate, folder, path, reference.vocab_size)
        except ModelError as error:
            report(f"[export] {candidate.precision}: left out: {error}")
            continue
        place = "cpu" if candidate.make else "device"
        if place not in speeds:
            whole = runtimes.open_runtime(folder, "jax", "float32")
            speeds[place] = speed_of(whole, timed)
        speed = speed_of(opened, timed)
        noise = score_noise(expected, runtimes.score_pairs(opened, rows))
        speedup = speed / speeds[place] if speeds[place] else 1.0
        yield _Made(candidate, path, noise, speed, speedup)


def score_noise(expected: np.ndarray, scores: np.ndarray) -> float:
    """Standard deviation of what changed, in that of the scores; 0 of no rows."""
    spread = float(expected.std()) if len(expected) else 0.0
    return float((scores - expected).std()) / spread if spread else 0.0


def folder_digest(folder: pathlib.Path, runtime: Name, precision: Precision) -> str:
    """What tells that a folder still holds what was accepted."""
    if runtime == "jax":
        return storage.digest(contract.tensor_digests(folder))
    path = folder / runtimes.FILES[precision]
    return contract.file_digest(path) if path.is_file() else ""


def _open(
    candidate: Reduced, folder: pathlib.Path, path: pathlib.Path, vocab_size: int
) -> Any:
    if candidate.make is None:
        return runtimes.open_runtime(folder, candidate.runtime, candidate.precision)
    kind = (
        runtimes.OnnxRuntime
        if candidate.runtime == "onnxruntime"
        else runtimes.OpenVino
    )
    return kind(path, candidate.precision, vocab_size)


def golden_row(promise: Contract, golden: contract.Golden) -> Segment:
    """The tokens of a golden pair as a runtime takes them."""
    first, second = promise.types
    return Segment(golden.tokens, (first, second), golden.document, 0)


def _split(lists: Sequence[Graded], scores: np.ndarray) -> Iterable[np.ndarray]:
    ends = np.cumsum([len(one.segments) for one in lists])
    return np.split(scores, ends[:-1]) if len(lists) else []


def _per_query(
    lists: Sequence[Graded], scores: np.ndarray, measure: str
) -> Float[np.ndarray, " Q"]:
    if not lists:
        return np.zeros(0)
    qrels, run = {}, {}
    for i, (one, found) in enumerate(zip(lists, _split(lists, scores), strict=True)):
        names = [f"{place:06d}" for place in range(len(found))]
        grades = dict(zip(names, (int(x) for x in one.labels), strict=True))
        qrels[f"{i:06d}"] = grades
        run[f"{i:06d}"] = dict(zip(names, (float(x) for x in found), strict=True))
    [result] = ranking.evaluate(qrels, run, [measure]).values()
    values = dict(zip(result.queries, result.values, strict=True))
    return np.array([values[name] for name in sorted(values)])


def _tau(lists: Sequence[Graded], a: np.ndarray, b: np.ndarray) -> float:
    """Mean over queries of Kendall's tau between two scorings."""
    pairs = zip(_split(lists, a), _split(lists, b), strict=True)
    found: list[Any] = [stats.kendalltau(x, y) for x, y in pairs if len(x) > 1]
    taus = [one.statistic for one in found]
    known = [tau for tau in taus if np.isfinite(tau)]
    return float(np.mean(known)) if known else 1.0


def _new_ties(lists: Sequence[Graded], a: np.ndarray, b: np.ndarray) -> int:
    """Documents with another's score, beyond those that had one before."""

    def tied(x: np.ndarray) -> int:
        return len(x) - len(np.unique(x))

    pairs = zip(_split(lists, a), _split(lists, b), strict=True)
    return sum(max(tied(y) - tied(x), 0) for x, y in pairs)


def _top_changed(lists: Sequence[Graded], a: np.ndarray, b: np.ndarray) -> float:
    """Share of queries with another first document."""
    pairs = list(zip(_split(lists, a), _split(lists, b), strict=True))
    return (
        float(np.mean([x.argmax() != y.argmax() for x, y in pairs])) if pairs else 0.0
    )


def speed_of(runtime: Any, segments: Sequence[Segment]) -> float:
    """Tokens a second of one thread, over some of the rows; 0 without rows."""
    rows = list(segments[:: max(len(segments) // _TIMED, 1)])[:_TIMED]
    if not rows:
        return 0.0
    runtimes.score_pairs(
        runtime, rows
    )  # lengths that were not met before cost time once
    begun = time.perf_counter()
    runtimes.score_pairs(runtime, rows)
    return sum(len(row.tokens) for row in rows) / (time.perf_counter() - begun)
