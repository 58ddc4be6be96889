"""`export`: a trained model as a Hugging Face folder with its score contract."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ranker import config, manifests, processes, sharding
from ranker.data.prepare import Prepared, prepare
from ranker.data.records import RankedList
from ranker.data.text import Segment, Tokenizer
from ranker.manifests import ExportFacts, Manifest, TrainSettings
from ranker.models.huggingface import export_huggingface
from ranker.serving import contract, golden
from ranker.serving.frame import tokenizer_frame
from ranker.training.card import write_card
from ranker.training.scorer import make_score, score_lists
from ranker.training.served import add_served
from ranker.training.state import make_network
from ranker.training.trained import Trained, load_trained

_SPLITS = ("dev", "train", "unlabelled")  # that golden pairs are drawn from
_LISTS = 40  # of each split that the sample is drawn from, at most
_DOCUMENTS = 5  # of each list, at most
_ROWS = 32  # pairs a batch


_KINDS = ("cpt", "sft", "distill")  # stages that can be exported
_BY = "the export stage"


@dataclasses.dataclass(frozen=True)
class ExportRun:
    """What is to be exported, before a model is loaded."""

    settings: config.Export
    workdir: pathlib.Path
    prepared: Prepared
    parent: Manifest
    manifest: Manifest

    @property
    def folder(self) -> pathlib.Path:
        """That is written."""
        return self.workdir / self.settings.folder


def plan(
    settings: config.Export,
    prepared: Prepared,
    workdir: pathlib.Path,
    planned: Mapping[str, Manifest] | None = None,
) -> ExportRun:
    """The stage with its manifest; arguments as of `training.run.plan`."""
    parent = manifests.require_stage(
        workdir, settings.stage, kinds=_KINDS, by=_BY, planned=planned
    )
    manifest = Manifest(
        kind="export",
        settings={
            "onnx": dataclasses.asdict(settings.onnx),
            "calibration": settings.calibration,
            "dtype": settings.dtype,
        },
        inputs={
            **prepared.inputs("corpus", *(f"lists/{one}" for one in _SPLITS)),
            settings.stage: parent.key,
        },
    )
    return ExportRun(settings, workdir, prepared, parent, manifest)


def export(
    settings: config.Export, workdir: pathlib.Path, *, replace: bool = False
) -> pathlib.Path:
    """Writes WORKDIR/FOLDER, which stock tools load as it is; returns the folder.

    Adapters are merged. A ranker gets a contract: how it is fed, and golden scores. A
    language model (after continued pre-training) has no score, and gets none.

    Raises:
      ConfigError, DataError, StageError: with what is wrong and what to do.
    """
    prepared = prepare(settings.data, settings.text, workdir, replace=replace)
    return execute(plan(settings, prepared, workdir), replace=replace)


def execute(run: ExportRun, *, replace: bool = False) -> pathlib.Path:
    """Runs a planned export; what is done already is left alone."""
    with manifests.claim(run.folder, run.manifest, replace=replace) as todo:
        if todo:
            mesh, stage = _own_mesh(run), run.settings.stage
            trained = load_trained(
                run.workdir, stage, run.prepared, mesh, kinds=_KINDS, by=_BY
            )
            processes.first(lambda: _write(run, trained, mesh))
            run.manifest.finish(
                run.folder,
                ExportFacts(stage=stage, length=trained.length),
                files=processes.first(lambda: manifests.outputs(run.folder)),
            )
            if processes.leads():
                print(f"[export] {stage} is in {run.folder}", flush=True)
    return run.folder


def _write(run: ExportRun, trained: Trained, mesh: Mesh) -> None:
    """Writes all of the folder but its manifest."""
    settings = run.settings
    if settings.dtype != "float32":
        trained = dataclasses.replace(trained, params=_rounded(trained.params))
    write_folder(run.folder, trained, run.prepared, mesh, settings.dtype)
    if trained.manifest.kind != "cpt":
        tokenizer = run.prepared.tokenizer(trained.role)
        score = partial(score_segments, trained=trained, tokenizer=tokenizer, mesh=mesh)
        add_served(run.folder, settings, trained, run.prepared, score)
    report = run.prepared.facts.report
    write_card(run.folder, run.workdir, trained, report)


def _own_mesh(run: ExportRun) -> Mesh:
    """The mesh asked for; with several processes one of this process's devices alone.

    The first process writes the folder, so it needs the whole model.
    """
    if processes.count() == 1:
        return sharding.make_mesh(run.settings.mesh)
    devices = jax.local_devices()
    width = TrainSettings.of(run.parent.settings).model["embed_dim"]
    parts = math.gcd(width, len(devices))
    return sharding.make_mesh(config.Mesh(fsdp=parts), devices)


def write_folder(
    folder: pathlib.Path,
    trained: Trained,
    prepared: Prepared,
    mesh: Mesh,
    dtype: config.DType = "float32",
) -> None:
    """Writes weights, tokenizer and, for a ranker, the contract."""
    scores = trained.manifest.kind != "cpt"
    (folder / contract.FILE).unlink(missing_ok=True)
    notes = export_huggingface(
        folder,
        trained.model,
        trained.params,
        head="score" if scores else "language",
        tokenizer=prepared.tokenizer_folder(trained.role),
        length=trained.length,
        dtype=dtype,
    )
    for note in notes:
        print(f"[export] {note}", flush=True)
    if scores:
        write_golden(folder, trained, prepared, mesh)


def _rounded(params: Any) -> Any:
    """Parameters as bfloat16 has them, one after the other: never two copies of all.

    So golden scores are those of the numbers in the file.
    """

    def rounded(leaf: jax.Array) -> jax.Array:
        return leaf.astype(jnp.bfloat16).astype(leaf.dtype)

    return jax.tree.map(jax.jit(rounded, donate_argnums=0), params)


def write_golden(
    folder: pathlib.Path, trained: Trained, prepared: Prepared, mesh: Mesh
) -> None:
    """Writes the contract of an exported ranker; golden scores are of float32."""
    tokenizer = prepared.tokenizer(trained.role)
    frame = tokenizer_frame(tokenizer, trained.length, trained.passages)
    golden.frame_pairs(folder, frame)
    about = golden.ModelFacts(
        stage=trained.name,
        template=tokenizer.template,
        model=trained.model,
        frame=frame,
    )

    def score(segments: Sequence[Segment]) -> np.ndarray:
        return score_segments(segments, trained, tokenizer, mesh)

    golden.write_contract(folder, about, draw_pairs(prepared), score)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """An encoder of rows that are there already."""

    segments: Sequence[Segment]
    tokenizer: Tokenizer
    length: int
    shared: bool = False  # no prompt is laid once for several
    passages: config.Passages = config.ONE_PASSAGE  # each row is on its own

    def many(
        self, lists: Sequence[tuple[str, Sequence[int] | np.ndarray]]
    ) -> list[list[Segment]]:
        """Rows of the documents of each list."""
        return [[self.segments[row] for row in rows] for _, rows in lists]


def score_segments(
    segments: Sequence[Segment], trained: Trained, tokenizer: Tokenizer, mesh: Mesh
) -> np.ndarray:
    """Scores of rows as stock tools compute them: all in float32."""
    exact = dataclasses.replace(trained.model, dtype="float32")
    network = make_network(exact, trained.vocab_size, "score", mesh)
    zero, none = np.zeros(1, np.float32), np.zeros(0, np.int32)
    lists = [
        RankedList("golden", "golden", np.array([i]), zero, zero, (), none)
        for i in range(len(segments))
    ]
    encoder: Any = _Rows(segments, tokenizer, trained.length)
    with jax.default_matmul_precision("highest"):
        score = make_score(network)
        return score_lists(score, trained.params, network, lists, encoder, rows=_ROWS)


def draw_pairs(prepared: Prepared) -> list[golden.GoldenPair]:
    """Pairs of all the prepared data, evenly spaced."""
    corpus, pairs = prepared.corpus(), []
    for split in _SPLITS:
        lists = prepared.lists(split)
        for number in _spaced(len(lists), _LISTS):
            record: RankedList = lists[number]
            rows = record.documents
            for place in _spaced(len(rows), _DOCUMENTS):
                document = corpus[int(rows[place])]
                pairs.append((record.query, (document.title, document.text)))
    return pairs


def _spaced(size: int, count: int) -> list[int]:
    """At most `count` places out of `size`, evenly spaced."""
    return np.unique(np.linspace(0, size - 1, min(size, count), dtype=int)).tolist()
