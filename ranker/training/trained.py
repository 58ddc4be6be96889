"""A finished training stage as a model: what later stages read."""

import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ranker import config, errors, manifests
from ranker.data.pairs import ListEncoder, Source, can_share
from ranker.data.prepare import Prepared
from ranker.data.records import Document
from ranker.data.text import Tokenizer, answers_of
from ranker.models import adapters
from ranker.models.build import Head
from ranker.models.huggingface import flat, import_params, open_checkpoint
from ranker.training.checkpoint import Checkpoints
from ranker.training.state import Network, make_network

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
    params: Any  # adapters are merged into them, in float32

    def encoder(self, prepared: Prepared) -> ListEncoder:
        """Makes this model's segments from the prepared data."""
        tokenizer = prepared.tokenizer(self.role)
        return self.encoder_of(prepared.corpus(), tokenizer)

    def encoder_of(
        self,
        corpus: Source[Document],
        tokenizer: Tokenizer,
        tokens: Mapping[int, np.ndarray] | None = None,
    ) -> ListEncoder:
        """Makes this model's segments from other documents, see `ListEncoder`."""
        shared, _ = can_share(self.model, tokenizer.template, self.length)
        return ListEncoder(corpus, tokenizer, self.length, shared=shared, tokens=tokens)


def load_trained(
    workdir: pathlib.Path,
    name: str,
    prepared: Prepared,
    mesh: Mesh,
    *,
    kinds: tuple[str, ...],
    by: str,
) -> Trained:
    """Loads the newest checkpoint of stage `name` onto the mesh.

    Raises:
      StageError: when the stage is missing, unfinished, not one of `kinds`, made from
        other data, or its checkpoint cannot be read.
    """
    manifest = _require(workdir, name, prepared, kinds=kinds, by=by)
    settings = manifest.settings
    model = config.from_dict(settings["model"])
    vocab_size = manifest.facts["vocab_size"]
    network = make_network(model, vocab_size, _head(manifest), mesh)
    lora = lora_of(manifest)
    if lora.rank:
        parts = _load_adapted(workdir, name, manifest, prepared, mesh)
        merge = jax.jit(
            partial(adapters.merge, lora=lora),
            out_shardings=dict(flat(network.shardings)),
        )
        params = unflat(merge(parts), network.abstract)
    elif "source" in manifest.facts:
        params = _read_source(workdir / name, manifest, prepared, network)
    else:
        params = _restore(workdir / name, network)
    return Trained(
        name=name,
        manifest=manifest,
        model=model,
        role=settings["role"],
        vocab_size=vocab_size,
        length=settings["length"],
        network=network,
        params=params,
    )


def _require(
    workdir: pathlib.Path,
    name: str,
    prepared: Prepared,
    *,
    kinds: tuple[str, ...],
    by: str,
) -> manifests.Manifest:
    manifest = manifests.require(workdir, name, kinds=kinds, by=by)
    role = manifest.settings["role"]
    if not prepared.inputs(role).items() <= manifest.inputs.items():
        raise errors.StageError(
            f"{workdir / name} was trained with another tokenizer or template of the "
            f"{role} than {prepared.folder} holds; run that stage again"
        )
    return manifest


def _head(manifest: manifests.Manifest) -> Head:
    return "language" if manifest.kind == "cpt" else "score"


def lora_of(manifest: manifests.Manifest) -> config.Lora:
    """The adapters that a stage has trained; of rank 0: none."""
    fields = manifest.settings.get("lora")
    return config.from_dict(fields) if fields else config.NO_LORA


def _restore(folder: pathlib.Path, network: Network) -> Any:
    abstract = jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(
            shape.shape, shape.dtype, sharding=sharding
        ),
        network.abstract,
        network.shardings,
    )
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore_params(abstract)
    finally:
        checkpoints.close()


def _read_source(
    folder: pathlib.Path,
    manifest: manifests.Manifest,
    prepared: Prepared,
    network: Network,
) -> Any:
    """The weights of a stage without steps, which are a checkpoint's.

    Matrices that are computed with in bfloat16, and come in it, are kept in it: a large
    teacher takes half the memory to the same scores.

    Raises:
      StageError: when it is no longer the checkpoint that the stage was run with.
    """
    template = prepared.text.of(manifest.settings["role"], "template")
    source = config.from_dict(manifest.facts["source"])
    checkpoint = open_checkpoint(source, answers_of(template))
    if checkpoint.digest != manifest.settings["checkpoint"]["digest"]:
        raise errors.StageError(
            f"{folder} is the checkpoint {checkpoint.folder}, which has changed since; "
            f"bring the old one back, or run the stage {folder.name!r} again"
        )
    narrow = checkpoint.halves and checkpoint.model.dtype == "bfloat16"

    def kept(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = _dotted(path)
        matrix = name.startswith("body.layers.") and not re.search("norm|bias", name)
        dtype = "bfloat16" if narrow and matrix else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    abstract = jax.tree_util.tree_map_with_path(kept, network.abstract)
    params, _ = import_params(checkpoint, _head(manifest), abstract, network.shardings)
    return unflat(params, network.abstract)


def inherit(
    workdir: pathlib.Path,
    name: str,
    prepared: Prepared,
    mesh: Mesh,
    *,
    head: Head,
    lora: config.Lora,
    kinds: tuple[str, ...],
    by: str,
) -> dict[str, jax.Array]:
    """What the stage `by` takes over from its parent `name`, by dotted path.

    A child with the parent's own adapter settings goes on with its base and its
    adapters as they are: rounding them into a bfloat16 base would lose small changes.
    The head comes along if it is of the same kind.

    Raises:
      StageError: as `load_trained`.
    """
    manifest = _require(workdir, name, prepared, kinds=kinds, by=by)
    if lora.rank and lora == lora_of(manifest):
        taken = _load_adapted(workdir, name, manifest, prepared, mesh)
    else:
        parent = load_trained(workdir, name, prepared, mesh, kinds=kinds, by=by)
        taken = dict(flat(parent.params))
    same_head = head == _head(manifest)
    return {p: v for p, v in taken.items() if same_head or p.startswith("body.")}


def _load_adapted(
    workdir: pathlib.Path,
    name: str,
    manifest: manifests.Manifest,
    prepared: Prepared,
    mesh: Mesh,
) -> dict[str, jax.Array]:
    """The frozen base of a stage and the adapters that it trained, by dotted path.

    Raises:
      StageError: when the base is no longer the one that the adapters belong to.
    """
    model = config.from_dict(manifest.settings["model"])
    lora, head = lora_of(manifest), _head(manifest)
    network = make_network(model, manifest.facts["vocab_size"], head, mesh, lora)
    source, by = manifest.facts["base"], f"the stage {name!r}"
    if isinstance(source, str):
        parent = manifests.require(workdir, source, kinds=STAGES, by=by)
        if parent.key != manifest.inputs[source]:
            raise errors.StageError(
                f"{workdir / name} holds adapters of the stage {source!r}, which has "
                f"run again since; run {name!r} again too"
            )
        taken = inherit(
            workdir, source, prepared, mesh, head=head, lora=lora, kinds=STAGES, by=by
        )
    else:
        checkpoint = open_checkpoint(config.from_dict(source))
        if checkpoint.digest != manifest.settings["checkpoint"]["digest"]:
            raise errors.StageError(
                f"{workdir / name} holds adapters of {checkpoint.folder}, which is "
                f"another checkpoint now; bring the old one back, or run {name!r} again"
            )
        taken, _ = import_params(
            checkpoint, head, network.frozen, network.frozen_shardings
        )
    frozen = freeze(taken, network, by=by)
    return {**dict(flat(frozen)), **dict(flat(_restore(workdir / name, network)))}


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
            "it would stay as it is drawn; set lora.rank to 0, or begin from weights "
            "that have it"
        )
    found = {}
    for path, shape in wanted.items():  # one by one: never two copies of all
        found[path] = taken.pop(path).astype(shape.dtype)
    return unflat(found, network.frozen)


def unflat(params: dict[str, jax.Array], like: Any) -> Any:
    """The `nnx.State` of the structure of `like` with these parameters by path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, variable: variable.replace(params[_dotted(path)]),
        like,
        is_leaf=lambda x: isinstance(x, nnx.Variable),
    )


def _dotted(path: tuple) -> str:
    return ".".join(str(getattr(key, "key", key)) for key in path)
