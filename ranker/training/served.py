"""What an export adds for servers: ONNX files, accepted precisions, probabilities."""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ranker import config
from ranker.data import passages
from ranker.data.pipeline import ListEncoder
from ranker.data.prepare import Prepared
from ranker.data.records import RankedList
from ranker.data.text import Segment
from ranker.errors import ModelError
from ranker.metrics import calibration
from ranker.models.huggingface import flat
from ranker.serving import contract, onnx_graph, precision, runtimes
from ranker.serving.precision import Graded
from ranker.training.trained import Trained

QUERIES = 2000  # of dev that are scored, at most
_TEACHER_QUERIES = 100  # the same where a decoder scores them, in float32
CALIBRATION_LISTS = 40  # of train, that ranges of activations are taken from


def add_served(
    folder: pathlib.Path,
    settings: config.Export,
    trained: Trained,
    prepared: Prepared,
    score: Callable[[Sequence[Segment]], np.ndarray],
) -> None:
    """Adds to an exported ranker what servers read, and says so in its contract.

    Args:
      folder: with weights and contract.
      settings: which files, and how scores become probabilities.
      trained: the model.
      prepared: its data; dev decides, train alone is calibrated on.
      score: raw scores of rows in float32.

    Raises:
      ModelError: when the precision asked for cannot be made here.
    """
    promise = contract.load_contract(folder)
    encoder = trained.encoder(prepared)
    small = isinstance(trained.model, config.Encoder)
    most = QUERIES if small else _TEACHER_QUERIES
    lists = graded_lists(prepared.lists("dev"), encoder, most)
    if trained.passages.most > 1 and settings.onnx.precision in ("bfloat16", "int8"):
        raise ModelError(
            f"onnx.precision is {settings.onnx.precision}, which is accepted by the "
            "ranking of documents read in one row, and this stage reads them by "
            f"passages ({trained.passages.most}); set onnx.precision to float32 or none"
        )
    if settings.calibration != "none":
        fields = _calibrate(settings, lists, score, encoder)
        promise = dataclasses.replace(promise, calibration=fields)
    if _write_graph(folder, settings.onnx, trained):
        if settings.onnx.precision in ("bfloat16", "int8"):
            train = graded_lists(prepared.lists("train"), encoder, CALIBRATION_LISTS)
            rows = [segment for one in train for segment in one.segments]
            promise = precision.accept(folder, promise, settings.onnx, lists, rows)
    promise.save(folder)


def _write_graph(folder: pathlib.Path, settings: config.Onnx, trained: Trained) -> bool:
    """Writes onnx/model.onnx, where it is wanted and can be; says why not."""
    for stale in runtimes.FILES.values():
        (folder / stale).unlink(missing_ok=True)
    if settings.precision == "none":
        return False
    missing = "" if importlib.util.find_spec("onnx") else "onnx is not installed"
    try:
        onnx_graph.check_encoder(trained.model)
    except ModelError as error:
        missing = str(error)
    if missing and settings.precision == "float32":
        print(f"[export] no onnx/model.onnx: {missing}", flush=True)
        return False
    if missing:
        raise ModelError(
            f"onnx.precision is {settings.precision}, and {missing}; pip install "
            "'ranker[export]', or set onnx.precision to none"
        )
    params = dict(flat(trained.params))
    onnx_graph.write_graph(folder / onnx_graph.FILE, trained.model, params)
    return True


def graded_lists(lists: Any, encoder: ListEncoder, most: int) -> list[Graded]:
    """Lists as rows with their labels, evenly spaced where there are more."""
    places = np.unique(np.linspace(0, len(lists) - 1, min(len(lists), most), dtype=int))
    found = []
    for place in places if len(lists) else ():
        record: RankedList = lists[int(place)]
        [(segments, counts)] = encoder.parts([(record.query, record.documents)])
        found.append(Graded(segments, record.labels, counts))
    return found


def _calibrate(
    settings: config.Export,
    lists: Sequence[Graded],
    score: Callable[[Sequence[Segment]], np.ndarray],
    encoder: ListEncoder,
) -> dict[str, Any]:
    """The calibration as JSON; empty, with a note, where dev has one class alone."""
    labels = np.concatenate([one.labels for one in lists]) if lists else np.zeros(0)
    relevant = labels > 0
    if not relevant.any() or relevant.all():
        print(
            "[export] no calibration: dev has no judged documents of both kinds; "
            "probabilities will be a sigmoid of the raw score",
            flush=True,
        )
        return {}
    scores = score([segment for one in lists for segment in one.segments])
    if encoder.passages.most > 1:
        of = passages.numbers([n for one in lists for n in one.counts])
        scores = passages.pool_scores(scores, of, encoder.passages.score)
    method: Any = settings.calibration
    return calibration.to_json(calibration.fit_calibration(method, scores, relevant))
