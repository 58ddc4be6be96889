"""Weights that a training stage begins from: a checkpoint's, a parent's, or fresh."""

import dataclasses
import pathlib
from typing import Any

import jax
from flax import nnx

from ranker import config
from ranker.data.prepare import Prepared
from ranker.models import build
from ranker.models.build import Head
from ranker.models.huggingface import Checkpoint, flat, import_params, open_checkpoint
from ranker.training.report import Reporter
from ranker.training.state import Network
from ranker.training.trained import load_trained


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a stage trains: the model, and the checkpoint that it is, if it is one."""

    model: config.Decoder | config.Encoder
    role: config.Role
    vocab_size: int  # rows of the embeddings
    checkpoint: Checkpoint | None


def find_origin(settings: config.Train, prepared: Prepared) -> Origin:
    """The model of a stage, whether the config describes or names it.

    Raises:
      ConfigError: when the model cannot read the prepared text.
      ModelError: when a checkpoint cannot be read.
    """
    model, checkpoint = settings.model, None
    if isinstance(model, config.Pretrained):
        checkpoint = open_checkpoint(model)
        model = checkpoint.model
    decoder = isinstance(model, config.Decoder)
    role = settings.role
    if role == "auto":
        role = "teacher" if decoder else "student"
    stage = f"stage {settings.name!r}"
    if isinstance(settings.objective, config.Language) and not decoder:
        raise config.ConfigError(
            f"{stage}: the language objective needs a decoder, found an encoder"
        )
    template = settings.text.of(role, "template")
    if decoder == (template == "pair"):
        fitting = "another than 'pair'" if decoder else "'pair'"
        raise config.ConfigError(
            f"{stage}: text.{role}_template is {template!r}, and "
            f"{'a decoder' if decoder else 'an encoder'} needs {fitting}"
        )
    length = settings.text.of(role, "length")
    positions = 0 if isinstance(model, config.Decoder) else model.max_positions
    if positions and length > positions:
        raise config.ConfigError(
            f"{stage}: text.{role}_length {length} is over model.max_positions "
            f"{positions}"
        )
    tokens = prepared.account.facts[role]["vocab_size"]
    rows = checkpoint.vocab_size if checkpoint else tokens
    if tokens > rows:
        raise config.ConfigError(
            f"{stage}: the tokenizer has {tokens} tokens, and {model_name(settings)} "
            f"has embeddings for {rows}; set text.{role}_tokenizer to the tokenizer "
            "of that checkpoint"
        )
    return Origin(model, role, rows, checkpoint)


def model_name(settings: config.Train) -> str:
    """The checkpoint's path, for messages."""
    model = settings.model
    return model.path if isinstance(model, config.Pretrained) else "the model"


def first_params(
    settings: config.Train,
    origin: Origin,
    network: Network,
    head: Head,
    prepared: Prepared,
    workdir: pathlib.Path,
    parents: tuple[str, ...],
    reporter: Reporter,
) -> Any:
    """Weights at step 0: the parent's or the checkpoint's, and fresh ones for the rest.

    Raises:
      StageError: when the parent cannot be loaded.
      ModelError: when the checkpoint cannot be read.
    """
    taken: dict[str, jax.Array] = {}
    if settings.parent:
        by = f"the stage {settings.name!r}"
        parent = load_trained(
            workdir, settings.parent, prepared, network.mesh, kinds=parents, by=by
        )
        # A language-model head is no score head.
        same_head = (parent.account.kind == "cpt") == (head == "language")
        taken = {
            path: value
            for path, value in flat(parent.params)
            if same_head or path.startswith("body.")
        }
        parts = "weights" if same_head else "body"
        reporter.note(f"begins from the {parts} of {settings.parent!r}")
    elif origin.checkpoint:
        taken, notes = import_params(
            origin.checkpoint, head, network.abstract, network.shardings
        )
        reporter.note(f"begins from {origin.checkpoint.folder}")
        for note in notes:
            reporter.note(f"  {note}")
    else:
        reporter.note("begins from fresh weights")
    return complete(
        taken, network, origin.model, origin.vocab_size, head, seed=settings.seed
    )


def complete(
    taken: dict[str, jax.Array],
    network: Network,
    model: config.Decoder | config.Encoder,
    vocab_size: int,
    head: Head,
    *,
    seed: int,
) -> Any:
    """All parameters: `taken` by path, and fresh ones elsewhere, made on the mesh."""
    missing = [path for path, _ in flat(network.abstract) if path not in taken]

    def fresh(key: jax.Array) -> dict[str, jax.Array]:
        made = build.build(model, vocab_size, head, key=key)
        params = dict(flat(nnx.split(made, nnx.Param)[1]))
        return {path: params[path] for path in missing}  # the others are not computed

    where = dict(flat(network.shardings))
    shardings = {path: where[path] for path in missing}
    with jax.set_mesh(network.mesh):
        made = jax.jit(fresh, out_shardings=shardings)(jax.random.key(seed))
    everything = {**made, **taken}
    return jax.tree_util.tree_map_with_path(
        lambda path, variable: variable.replace(everything[_dotted(path)]),
        network.abstract,
        is_leaf=lambda x: isinstance(x, nnx.Variable),
    )


def _dotted(path: tuple) -> str:
    return ".".join(str(getattr(key, "key", key)) for key in path)
