"""The one batch type: what data produces and models, objectives and steps consume."""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """R rows of T tokens; a row holds one or several segments, each a text of its own.

    What a model reads, as one argument. Where documents share their prompt, it is a
    segment too, laid once before them: each document sees itself and that prefix, and
    its positions continue the prefix's.
    """

    tokens: Int[Array, "*A R T"]  # token ids
    segments: Int[Array, "*A R T"]  # 0: padding; 1, 2, ...: the segments of a row
    positions: Int[Array, "*A R T"]  # restart at 0 in each segment
    types: Int[Array, "*A R T"]  # 0: query, 1: document (encoders)
    # The segment, of the same row and before it, that a token sees beside its own; 0:
    # none. None: no segment is shared.
    prefixes: Int[Array, "*A R T"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Impressions:
    """Where documents were shown when they were clicked or not, and what they count."""

    positions: Int[Array, "*A B L"]  # on the results page, from 1; 0: on none
    weights: Float[Array, "*A B L"]  # 1 / the chance of being looked at; else 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedBatch:
    """Rows, and what is learned from them.

    Language modelling reads `loss_mask`. Ranking reads the last five: B lists of L
    documents, each scored at one token. The rows of a list lie within one data shard,
    so that no score crosses devices before the loss.
    """

    rows: Rows
    loss_mask: Bool[Array, "*A R T"]  # True: this token is to be predicted
    score_index: Int[
        Array, "*A B L"
    ]  # r * T + t of the token that a document is scored at
    labels: Float[Array, "*A B L"]  # judgements, 0 where nobody judged
    targets: Float[Array, "*A B L"]  # teacher scores
    where: Bool[Array, "*A B L"]  # True: a real document
    # Of lists of clicks; None where a stage learns from none.
    impressions: Impressions | None = None
    # True: a real passage; `score_index` then has P a document, [*A, B, L * P]. None:
    # each document is one segment.
    passages: Bool[Array, "*A B L P"] | None = None
