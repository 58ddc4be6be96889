"""A finished training stage as a model: what later stages read."""

import pathlib
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from ranker import config, manifest
from ranker.data.pipeline import ListEncoder
from ranker.data.prepare import Prepared
from ranker.models.build import Head
from ranker.training.checkpoint import Checkpoints
from ranker.training.state import Network, make_network

KINDS = {config.Language: "cpt", config.Rank: "sft", config.Distillation: "distill"}


@dataclass(frozen=True)
class Trained:
    """The weights of a finished stage on a mesh."""

    name: str
    account: manifest.Manifest
    model: config.Decoder | config.Encoder
    role: config.Role  # whose tokenizer and template it reads
    vocab_size: int
    length: int  # tokens a row that it was trained with
    network: Network
    params: Any

    def encoder(self, prepared: Prepared) -> ListEncoder:
        """Makes this model's segments from the prepared data."""
        tokenizer = prepared.tokenizer(self.role)
        return ListEncoder(prepared.corpus(), tokenizer, self.length)


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
    account = manifest.require(workdir, name, kinds=kinds, by=by)
    if account.inputs["prepare"] != prepared.account.key:
        raise manifest.StageError(
            f"{workdir / name} was trained on other data or tokenizers than "
            f"{prepared.folder} holds; run that stage again"
        )
    settings = account.settings
    model = config.model_from_dict(settings["model"])
    head: Head = "language" if account.kind == "cpt" else "score"
    vocab_size = account.facts["vocab_size"]
    network = make_network(model, vocab_size, head, mesh)
    abstract = jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(
            shape.shape, shape.dtype, sharding=sharding
        ),
        network.abstract,
        network.shardings,
    )
    checkpoints = Checkpoints(workdir / name)
    try:
        params = checkpoints.restore_params(abstract)
    finally:
        checkpoints.close()
    return Trained(
        name=name,
        account=account,
        model=model,
        role=settings["role"],
        vocab_size=vocab_size,
        length=settings["length"],
        network=network,
        params=params,
    )
