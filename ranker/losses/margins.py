"""Which pairs of a list `distillation.margin_mse` compares, and how much each counts.

Arrays [*B, L, L], 0 or more, in which a pair of documents occurs once. They are made
of labels, of the teacher's scores, or of chance, never of the student's scores.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ranker.losses import lists

Pairs = Bool[Array, "*B L L"]


def every(where: Bool[Array, "*B L"]) -> Pairs:
    """All pairs of two documents: only the mean error of a list does not count."""
    return lists.pairs(where)


def by_label(labels: Float[Array, "*B L"], where: Bool[Array, "*B L"]) -> Pairs:
    """The pairs of which i has the higher label."""
    return lists.preferences(labels, where)


def by_teacher(targets: Float[Array, "*B L"], where: Bool[Array, "*B L"]) -> Pairs:
    """The pairs of which i has the higher teacher score: all but the ties."""
    return lists.preferences(jax.lax.stop_gradient(targets), where)


def of_top(
    targets: Float[Array, "*B L"], where: Bool[Array, "*B L"], *, top: int
) -> Pairs:
    """The pairs of one of the teacher's first `top` documents, i, and one further down.

    Equal teacher scores rank in the order of the list.

    >>> import jax.numpy as jnp
    >>> t, where = jnp.array([0.0, 5.0, 2.0]), jnp.ones(3, bool)
    >>> of_top(t, where, top=1).astype(int).tolist()
    [[0, 0, 0], [1, 0, 1], [0, 0, 0]]
    """
    rank = lists.ranks(jax.lax.stop_gradient(targets), where)
    first = rank <= top
    return lists.both(where) & first[..., :, None] & ~first[..., None, :]


def drawn(pairs: Pairs, key: Array) -> Pairs:
    """Of the pairs (i, j) of each document i, one, drawn uniformly.

    Each i that has a pair then counts once, however many documents it is ahead of.

    Args:
      pairs: [*B, L, L] bool.
      key: PRNG key of this batch; the number of pairs left does not depend on it.
    """
    chance = jnp.where(pairs, jax.random.uniform(key, pairs.shape), -1.0)
    drawn = jax.nn.one_hot(jnp.argmax(chance, axis=-1), pairs.shape[-1], dtype=bool)
    return pairs & drawn


def by_gap(
    pairs: Pairs, targets: Float[Array, "*B L"], where: Bool[Array, "*B L"]
) -> Float[Array, "*B L L"]:
    """The pairs, each counted by how far apart the teacher's scores are.

    >>> import jax.numpy as jnp
    >>> t, where = jnp.array([3.0, 0.0, 1.0]), jnp.ones(3, bool)
    >>> by_gap(every(where), t, where).tolist()
    [[0.0, 3.0, 2.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    gaps = lists.differences(lists.masked(jax.lax.stop_gradient(targets), where))
    return jnp.where(pairs, jnp.abs(gaps), 0.0)
