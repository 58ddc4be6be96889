"""A finished training stage as a model: what later stages read."""

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ranker import config, errors, manifests
from ranker.data.pairs import Indexed, ListEncoder, can_share
from ranker.data.prepare import Prepared
from ranker.data.records import Document
from ranker.data.text import Tokenizer, answers_of
from ranker.manifests import TrainFacts, TrainSettings
from ranker.models import adapters
from ranker.models.build import POSITION_BIAS, HeadKind
from ranker.models.huggingface import Checkpoint, import_params, open_checkpoint
from ranker.models.params import flat, unflat
from ranker.training.checkpoint import Checkpoints
from ranker.training.state import Network, make_network, placed

STAGES = ("cpt", "sft", "distill")
KINDS = {config.Language: "cpt", config.Rank: "sft", config.Distillation: "distill"}


@dataclass(frozen=True)
class Trained:
    """The weights of a finished stage on a mesh."""

    name: str
    manifest: manifests.Manifest
    model: config.Decoder | config.Encoder
    role: config.Role  # whose tokenizer and template it reads
    vocab_size: int
    length: int  # tokens a row that it was trained with
    network: Network
    params: Any  # adapters have been merged into them, in float32
    passages: config.Passages = config.ONE_PASSAGE  # of a long document

    def encoder(self, prepared: Prepared) -> ListEncoder:
        """Makes this model's segments from the prepared data."""
        tokenizer = prepared.tokenizer(self.role)
        return self.encoder_of(prepared.corpus(), tokenizer)

    def encoder_of(
        self,
        corpus: Indexed[Document],
        tokenizer: Tokenizer,
        tokens: Mapping[int, np.ndarray] | None = None,
    ) -> ListEncoder:
        """Makes this model's segments from other documents, see `ListEncoder`."""
        shared, _ = can_share(self.model, tokenizer.template, self.length)
        return ListEncoder(
            corpus,
            tokenizer,
            self.length,
            shared=shared,
            tokens=tokens,
            passages=self.passages,
        )


def load_trained(
    workdir: pathlib.Path,
    name: str,
    prepared: Prepared,
    mesh: Mesh,
    *,
    kinds: tuple[str, ...],
    by: str,
    scoring: bool = False,
) -> Trained:
    """Loads the result of stage `name` onto the mesh.

    Args:
      workdir: of all stages.
      name: of the stage.
      prepared: data that it was trained on.
      mesh: its parameters lie on it.
      kinds: kinds of stage that can serve.
      by: name of the stage that asks, for messages.
      scoring: parameters are kept as `Network.scoring` has them, for the same scores.

    Raises:
      StageError: when the stage is missing, unfinished, not one of `kinds`, made from
        other data, or its checkpoint cannot be read.
    """
    line = lineage(workdir, name, prepared, kinds=kinds, by=by)
    last = line[-1]
    params = put_together(line, mesh, lora=config.NO_LORA, scoring=scoring)
    network = last.network(mesh, config.NO_LORA)
    if scoring:
        for path, leaf in flat(network.scoring):  # one by one: never two copies of all
            params[path] = params.pop(path).astype(leaf.dtype)
    return Trained(
        name=name,
        manifest=last.manifest,
        model=last.model,
        role=last.settings.role,
        vocab_size=last.facts.vocab_size,
        length=last.settings.length,
        network=network,
        params=unflat(params, network.abstract),
        passages=config.Passages(**last.settings.passages or {}),
    )


@dataclass(frozen=True)
class Ancestor:
    """A stage whose weights, or part of them, a later one consists of."""

    folder: pathlib.Path
    manifest: manifests.Manifest
    settings: TrainSettings
    facts: TrainFacts
    checkpoint: Checkpoint | None  # that it is, or that its adapters belong to

    @property
    def model(self) -> config.Decoder | config.Encoder:
        """The network's settings."""
        return config.from_dict(self.settings.model)

    @property
    def head(self) -> HeadKind:
        """Kind of its head."""
        return "language" if self.manifest.kind == "cpt" else "score"

    @property
    def lora(self) -> config.Lora:
        """The adapters that it has trained; of rank 0: none."""
        fields = self.settings.lora
        return config.from_dict(fields) if fields else config.NO_LORA

    def network(
        self, mesh: Mesh, lora: config.Lora, *, position_bias: int = 0
    ) -> Network:
        """The model on a mesh."""
        return make_network(
            self.model,
            self.facts.vocab_size,
            self.head,
            mesh,
            lora,
            position_bias=position_bias,
        )

    def restore(
        self, mesh: Mesh, lora: config.Lora, *, scoring: bool = False
    ) -> dict[str, jax.Array]:
        """What the stage has trained, by dotted path, without a bias of positions.

        Args:
          mesh: its parameters lie on it.
          lora: of the stage.
          scoring: in the dtypes of `Network.scoring`.
        """
        bias = (self.settings.objective or {}).get(POSITION_BIAS, 0)
        network = self.network(mesh, lora, position_bias=bias)
        abstract = network.scoring if scoring else network.abstract
        params = dict(flat(_restore(self.folder, placed(abstract, network.shardings))))
        params.pop(POSITION_BIAS, None)
        return params


def lineage(
    workdir: pathlib.Path,
    name: str,
    prepared: Prepared,
    *,
    kinds: tuple[str, ...],
    by: str,
) -> list[Ancestor]:
    """The stages that the weights of `name` are put together from, the oldest first.

    One that trained all its weights stands alone; one of adapters follows its base.

    Raises:
      StageError: when one is missing, or is no longer what a later one belongs to.
    """
    line: list[Ancestor] = []
    wanted = ""
    while True:
        manifest = _require(workdir, name, prepared, kinds=kinds, by=by)
        folder, facts = workdir / name, TrainFacts.of(manifest.facts)
        settings = TrainSettings.of(manifest.settings)
        if wanted and manifest.key != wanted:
            raise errors.StageError(
                f"{line[0].folder} holds adapters of the stage {name!r}, which has run "
                f"again since; run {line[0].folder.name!r} again too"
            )
        checkpoint = _open_source(folder, settings, facts, prepared)
        line.insert(0, Ancestor(folder, manifest, settings, facts, checkpoint))
        if not isinstance(facts.base, str):
            return line
        by, kinds, wanted = f"the stage {name!r}", STAGES, manifest.inputs[facts.base]
        name = facts.base


def put_together(
    line: list[Ancestor], mesh: Mesh, *, lora: config.Lora, scoring: bool = False
) -> dict[str, jax.Array]:
    """Weights of the last of a lineage by dotted path, for who trains with `lora`.

    Adapters are merged into their base, unless they are trained on as they are. With
    `scoring` a stage without adapters is read in the dtypes of `Network.scoring`.
    """
    params: dict[str, jax.Array] = {}
    before: HeadKind | None = None
    for one, after in zip(line, [*(one.lora for one in line[1:]), lora], strict=True):
        if not one.lora.rank:
            alone = scoring and one is line[-1]
            params = _whole(one, one.network(mesh, config.NO_LORA), scoring=alone)
        else:
            taken = for_head(params, before or one.head, one.head)
            params = _adapted(one, taken, one.network(mesh, one.lora))
            if after.adapters != one.lora.adapters:
                merge = jax.jit(
                    partial(adapters.merge_adapters, lora=one.lora),
                    out_shardings=dict(
                        flat(one.network(mesh, config.NO_LORA).shardings)
                    ),
                )
                params = merge(params)
        before = one.head
    return params


def for_head(
    params: dict[str, jax.Array], head: HeadKind, wanted: HeadKind
) -> dict[str, jax.Array]:
    """Without the head, where a model has one of another kind."""
    return {p: v for p, v in params.items() if head == wanted or p.startswith("body.")}


def _whole(one: Ancestor, network: Network, *, scoring: bool) -> dict[str, jax.Array]:
    """All weights of a stage without adapters."""
    if one.checkpoint is None:
        return one.restore(network.mesh, config.NO_LORA, scoring=scoring)
    return _read_source(one.checkpoint, one.head, network)


def _adapted(
    one: Ancestor, taken: dict[str, jax.Array], network: Network
) -> dict[str, jax.Array]:
    """The frozen base of a stage and the adapters that it trained."""
    if one.checkpoint is not None:
        taken, _ = import_params(
            one.checkpoint, one.head, network.frozen, network.frozen_shardings
        )
    frozen = freeze(taken, network, by=f"the stage {one.folder.name!r}")
    return {**dict(flat(frozen)), **one.restore(network.mesh, one.lora)}


def _require(
    workdir: pathlib.Path,
    name: str,
    prepared: Prepared,
    *,
    kinds: tuple[str, ...],
    by: str,
) -> manifests.Manifest:
    manifest = manifests.require_stage(workdir, name, kinds=kinds, by=by)
    role = manifest.settings["role"]
    if not prepared.inputs(role).items() <= manifest.inputs.items():
        raise errors.StageError(
            f"{workdir / name} was trained with another tokenizer or template of the "
            f"{role} than {prepared.folder} holds; run that stage again"
        )
    return manifest


def _open_source(
    folder: pathlib.Path,
    settings: TrainSettings,
    facts: TrainFacts,
    prepared: Prepared,
) -> Checkpoint | None:
    """The checkpoint that a stage of no steps is, or that adapters belong to.

    Raises:
      StageError: when it is no longer the one that the stage was run with.
    """
    source = facts.source or facts.base
    if not isinstance(source, dict):
        return None
    template = prepared.text.of(settings.role, "template")
    answers = answers_of(template) if facts.source else ()
    checkpoint = open_checkpoint(config.from_dict(source), answers)
    recorded = settings.checkpoint or {}
    if checkpoint.digest != recorded.get("digest"):
        what = "is" if facts.source else "holds adapters of"
        raise errors.StageError(
            f"{folder} {what} the checkpoint {checkpoint.folder}, which has changed "
            f"since; bring the old one back, or run the stage {folder.name!r} again"
        )
    return checkpoint


def _restore(folder: pathlib.Path, wanted: Any) -> Any:
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore_params(wanted)
    finally:
        checkpoints.close()


def _read_source(
    checkpoint: Checkpoint, head: HeadKind, network: Network
) -> dict[str, jax.Array]:
    """The weights of a stage without steps, which are a checkpoint's.

    Matrices that are computed with in bfloat16, and come in it, are kept in it, whoever
    reads them: nothing is lost.
    """
    narrow = checkpoint.halves and checkpoint.model.dtype == "bfloat16"
    abstract = network.scoring if narrow else network.abstract
    params, _ = import_params(checkpoint, head, abstract, network.shardings)
    return params


def freeze(taken: dict[str, jax.Array], network: Network, *, by: str) -> Any:
    """The parameters that do not train, in their dtype; removes them from `taken`.

    Raises:
      StageError: when one is not there: a fresh one would never be trained.
    """
    wanted = dict(flat(network.frozen))
    missing = [path for path in wanted if path not in taken]
    if missing:
        raise errors.StageError(
            f"{by}: what it begins from has no {', '.join(missing)}, and with adapters "
            "it would keep its random values; set lora.rank to 0, or begin from "
            "weights that have it"
        )
    found = {}
    for path, shape in wanted.items():  # one by one: never two copies of all
        found[path] = taken.pop(path).astype(shape.dtype)
    return unflat(found, network.frozen)
