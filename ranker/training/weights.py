"""Weights that a training stage begins from: a checkpoint's, a parent's, or fresh."""

import dataclasses
import math
import pathlib
from typing import Any

import jax
from flax import nnx

from ranker import config
from ranker.data.prepare import Prepared
from ranker.models import build
from ranker.models.build import Head
from ranker.models.huggingface import Checkpoint, flat, import_params, open_checkpoint
from ranker.training.imports import template_answers
from ranker.training.reporter import Reporter
from ranker.training.state import Network
from ranker.training.trained import freeze, inherit, unflat


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
        checkpoint = open_checkpoint(model, template_answers(settings))
        model = checkpoint.model
    decoder = isinstance(model, config.Decoder) and model.causal
    role = settings.role
    if role == "auto":
        role = "teacher" if decoder else "student"
    stage = f"stage {settings.name!r}"
    if isinstance(settings.objective, config.Language) and not decoder:
        raise config.ConfigError(
            f"{stage}: the language objective needs a decoder, found an encoder"
        )
    template = settings.text.of(role, "template")
    either = model.causal != isinstance(model, config.Decoder)  # EuroBERT and the like
    if not either and decoder == (template == "pair"):
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
    if checkpoint and not settings.text.of(role, "tokenizer"):
        raise config.ConfigError(
            f"{stage}: text.{role}_tokenizer is empty, so one was trained, and "
            f"{model_name(settings)} reads its own; set --config.text.{role}_tokenizer="
            f"{model_name(settings)}"
        )
    tokens = prepared.manifest.facts[role]["vocab_size"]
    rows = checkpoint.vocab_size if checkpoint else tokens
    if tokens > rows:
        raise config.ConfigError(
            f"{stage}: the tokenizer has {tokens} tokens, and {model_name(settings)} "
            f"has embeddings for {rows}; set text.{role}_tokenizer to the tokenizer "
            "of that checkpoint"
        )
    return Origin(model, role, rows, checkpoint)


def check_scores(settings: config.Train, origin: Origin) -> None:
    """Refuses a ranker without steps whose score head would be drawn at random.

    Raises:
      ConfigError: saying what scores.
    """
    if settings.parent or (
        origin.checkpoint and origin.checkpoint.plan("score").scores
    ):
        return
    raise config.ConfigError(
        f"stage {settings.name!r} has loop.steps=0, and {model_name(settings)} has no "
        "score head, so its scores would be random; set loop.steps, or name a "
        "checkpoint that scores: a sequence classifier of one label, or a language "
        f"model with the words that it answers (text.{origin.role}_template "
        "qwen3_reranker or bge_reranker_gemma, or model.score_tokens)"
    )


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
) -> tuple[Any, Any]:
    """Weights at step 0: the parent's or the checkpoint's, and fresh ones for the rest.

    Returns:
      What trains, and what does not (nothing, without adapters).

    Raises:
      StageError: when the parent cannot be loaded.
      ModelError: when the checkpoint cannot be read.
    """
    taken: dict[str, jax.Array] = {}
    by = f"the stage {settings.name!r}"
    if settings.parent:
        taken = inherit(
            workdir,
            settings.parent,
            prepared,
            network.mesh,
            head=head,
            lora=settings.lora,
            kinds=parents,
            by=by,
        )
        with_head = any(path.startswith("head") for path in taken)
        parts = "weights" if with_head else "body"
        reporter.note(f"begins from the {parts} of {settings.parent!r}")
    elif origin.checkpoint:
        source = origin.checkpoint
        reporter.note(f"begins from {source.folder}, {source.gib:.2f} GiB")
        taken, notes = import_params(
            origin.checkpoint,
            head,
            nnx.merge_state(network.abstract, network.frozen),
            nnx.merge_state(network.shardings, network.frozen_shardings),
        )
        for note in notes:
            reporter.note(f"  {note}")
    else:
        reporter.note("begins from fresh weights")
    frozen = freeze(taken, network, by=by)
    if settings.lora.rank:
        reporter.note(_counts(network))
    params = complete(
        taken,
        network,
        origin.model,
        origin.vocab_size,
        head,
        seed=settings.seed,
        lora=settings.lora,
    )
    return params, frozen


def _counts(network: Network) -> str:
    trained, frozen = (
        sum(math.prod(leaf.shape) for _, leaf in flat(part))
        for part in (network.abstract, network.frozen)
    )
    share = trained / (trained + frozen)
    return f"trains {trained:,} parameters of adapters and head, {share:.2%} of all"


def complete(
    taken: dict[str, jax.Array],
    network: Network,
    model: config.Decoder | config.Encoder,
    vocab_size: int,
    head: Head,
    *,
    seed: int,
    lora: config.Lora = config.NO_LORA,
) -> Any:
    """All that trains: `taken` by path, and fresh ones elsewhere, made on the mesh."""
    wanted = {path: leaf.dtype for path, leaf in flat(network.abstract)}
    missing = [path for path in wanted if path not in taken]
    # A parent that only scores may be kept in bfloat16, where small updates are lost.
    taken = {p: v.astype(wanted[p]) for p, v in taken.items() if p in wanted}

    def fresh(key: jax.Array) -> dict[str, jax.Array]:
        made = build.build(model, vocab_size, head, key=key, lora=lora)
        params = dict(flat(nnx.split(made, nnx.Param)[1]))
        return {path: params[path] for path in missing}  # the others are not computed

    where = dict(flat(network.shardings))
    shardings = {path: where[path] for path in missing}
    with jax.set_mesh(network.mesh):
        made = jax.jit(fresh, out_shardings=shardings)(jax.random.key(seed))
    return unflat({**made, **taken}, network.abstract)
