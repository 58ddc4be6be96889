"""Weights that a training stage starts from: a checkpoint's, a parent's, or fresh."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ranker import config
from ranker.models import build
from ranker.models.build import HeadKind
from ranker.models.huggingface import import_params
from ranker.models.params import flat, unflat
from ranker.training.origin import Origin
from ranker.training.reporter import Reporter
from ranker.training.run import PARENTS, TrainingRun
from ranker.training.state import Network
from ranker.training.trained import (
    for_head,
    freeze,
    lineage,
    put_together,
)


def first_params(run: TrainingRun, reporter: Reporter) -> tuple[Any, Any]:
    """Weights at step 0: the parent's or the checkpoint's, and fresh ones for the rest.

    Returns:
      What trains, and what does not (nothing, without adapters).

    Raises:
      StageError: when the parent cannot be loaded.
      ModelError: when the checkpoint cannot be read.
    """
    settings, origin, network = run.settings, run.origin, run.network
    taken: dict[str, jax.Array] = {}
    if settings.parent:
        taken = inherit(run)
        with_head = any(path.startswith("head") for path in taken)
        parts = "weights" if with_head else "body"
        reporter.note(f"starts from the {parts} of {settings.parent!r}")
    elif origin.checkpoint:
        source = origin.checkpoint
        reporter.note(f"starts from {source.folder}, {source.gib:.2f} GiB")
        taken, notes = import_params(
            origin.checkpoint,
            run.objective.head,
            nnx.merge_state(network.abstract, network.frozen),
            nnx.merge_state(network.shardings, network.frozen_shardings),
        )
        for note in notes:
            reporter.note(f"  {note}")
    else:
        reporter.note("starts from fresh weights")
    frozen = freeze(taken, network, by=run.by)
    if settings.lora.rank:
        reporter.note(_counts(network))
    params = complete_params(
        taken,
        network,
        origin.model,
        origin.vocab_size,
        run.objective.head,
        seed=settings.seed,
        lora=settings.lora,
        position_bias=run.objective.position_bias,
    )
    return params, frozen


def inherit(run: TrainingRun) -> dict[str, jax.Array]:
    """What a stage takes over from its parent, by dotted path.

    A child with the parent's own adapter settings keeps its base and its adapters as
    they are: rounding them into a bfloat16 base would lose small changes. The head
    comes along if it is of the same kind.

    Raises:
      StageError: as `load_trained`.
    """
    kinds = PARENTS[run.manifest.kind]
    parent = run.settings.parent
    line = lineage(run.workdir, parent, run.prepared, kinds=kinds, by=run.by)
    params = put_together(line, run.mesh, lora=run.settings.lora)
    taken = for_head(params, line[-1].head, run.objective.head)
    if line[-1].head == "language" and run.objective.head == "score":
        where = dict(flat(run.network.shardings))
        score = score_of_words(params, run.origin)
        taken |= {path: jax.device_put(one, where[path]) for path, one in score.items()}
    return taken


def score_of_words(
    params: Mapping[str, jax.Array], origin: Origin
) -> dict[str, jax.Array]:
    """The score of a language model that answers with words, from their logits' rows.

    So continued pre-training does not lose what a checkpoint's answers are worth.

    Args:
      params: of the language model, by dotted path.
      origin: the model that scores; of a checkpoint without such words nothing is made.
    """
    source, model = origin.checkpoint, origin.model
    if source is None or not source.score_tokens or source.fresh_head:
        return {}
    assert isinstance(model, config.Decoder)
    table = params.get("head", params["body.embedding"])
    rows = table[jnp.asarray(source.score_tokens)].astype(jnp.float32)
    if model.grades:
        return {"head.dense": rows}
    weight = rows[0] - rows[1] if len(source.score_tokens) > 1 else rows[0]
    return {"head.dense": weight * model.logit_scale}


def _counts(network: Network) -> str:
    trained, frozen = (
        sum(math.prod(leaf.shape) for _, leaf in flat(part))
        for part in (network.abstract, network.frozen)
    )
    share = trained / (trained + frozen)
    return f"trains {trained:,} parameters of adapters and head, {share:.2%} of all"


def complete_params(
    taken: dict[str, jax.Array],
    network: Network,
    model: config.Decoder | config.Encoder,
    vocab_size: int,
    head: HeadKind,
    *,
    seed: int,
    lora: config.Lora = config.NO_LORA,
    position_bias: int = 0,
) -> Any:
    """All that trains: `taken` by path, and fresh ones elsewhere, made on the mesh."""
    wanted = {path: leaf.dtype for path, leaf in flat(network.abstract)}
    missing = [path for path in wanted if path not in taken]
    # A parent that only scores may be kept in bfloat16, where small updates are lost.
    taken = {p: v.astype(wanted[p]) for p, v in taken.items() if p in wanted}

    def fresh(key: jax.Array) -> dict[str, jax.Array]:
        made = build.build(
            model, vocab_size, head, key=key, lora=lora, position_bias=position_bias
        )
        params = dict(flat(nnx.split(made, nnx.Param)[1]))
        return {path: params[path] for path in missing}  # the others are not computed

    where = dict(flat(network.shardings))
    shardings = {path: where[path] for path in missing}
    with jax.set_mesh(network.mesh):
        made = jax.jit(fresh, out_shardings=shardings)(jax.random.key(seed))
    return unflat({**made, **taken}, network.abstract)
