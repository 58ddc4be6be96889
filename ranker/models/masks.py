"""Which keys a query sees: the rule that all attention kernels share, and its mask.

Kernels that work by blocks ask `reach` which blocks hold some key that is seen.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What attention computes, beside its arrays; static, so it can be closed over."""

    causal: bool  # only tokens up to the query's own
    window: int = 0  # tokens that are seen, see `make_mask`; 0: all
    scale: float = 0.0  # factor on the logits; 0: head width ** -0.5
    cap: float = 0.0  # bound on the logits, cap * tanh(logits / cap); 0: none


def make_mask(
    segments: Int[Array, "R T"],
    rule: Rule,
    prefixes: Int[Array, "R T"] | None = None,
) -> Bool[Array, "R 1 T T"]:
    """Which key (column) each query (row) sees: its own segment, never padding.

    For segments [1, 1, 1, 2, 0]: full, causal, and causal with a window of 2:

        1 1 1 . .        1 . . . .        1 . . . .
        1 1 1 . .        1 1 . . .        1 1 . . .
        1 1 1 . .        1 1 1 . .        . 1 1 . .
        . . . 1 .        . . . 1 .        . . . 1 .
        . . . . .        . . . . .        . . . . .

    Segments [1, 1, 2, 2, 3, 0] of which 2 and 3 have the prefix 1, causal:

        1 . . . . .
        1 1 . . . .
        1 1 1 . . .
        1 1 1 1 . .
        1 1 . . 1 .
        . . . . . .

    A row of padding sees nothing; `attend` gives it finite values.

    Args:
      segments: 0: padding; 1, 2, ...: the segments of a row, each contiguous.
      rule: `causal`: only tokens up to the query's own. `window`: where causal, how
        many tokens are seen, the query's own included; else how many to either side.
      prefixes: the segment that each token sees beside its own, 0: none. The window is
        counted in places of the row, so there must be none with prefixes.
    """
    assert prefixes is None or not rule.window, rule

    def same(ids: Int[Array, "R T"]) -> Bool[Array, "R T T"]:
        return (ids[:, :, None] == segments[:, None, :]) & (ids > 0)[:, :, None]

    mask = same(segments)
    if prefixes is not None:
        mask = mask | same(prefixes)
    place = jnp.arange(segments.shape[1])
    back = place.reshape(1, -1, 1) - place.reshape(1, 1, -1)  # [1, T, T]
    if rule.causal:
        mask = mask & (back >= 0)
    if rule.window:
        near = back < rule.window if rule.causal else jnp.abs(back) <= rule.window
        mask = mask & near
    return mask[:, None]


def reach(
    segments: Int[Array, "R T"],
    rule: Rule,
    block: int,
    prefixes: Int[Array, "R T"] | None = None,
) -> Bool[Array, "R I I"]:
    """Which blocks of keys (columns) each block of queries (rows) sees, its own always.

    Two blocks see each other where their ranges of segments meet, within the window, or
    where one holds what texts of the other begin with.

    Args:
      segments: 0: padding, at the end of a row; 1, 2, ...: contiguous and rising.
      rule: as for `make_mask`.
      block: tokens a block, which divides T.
      prefixes: as for `make_mask`.
    """
    low, high = _bounds(segments, block)
    real = high > 0  # a block of padding has no range
    meet = (low[:, :, None] <= high[:, None]) & (low[:, None] <= high[:, :, None])
    meet = meet & real[:, :, None] & real[:, None]
    place = jnp.arange(low.shape[1])
    back = place[:, None] - place[None]  # blocks
    if rule.causal:
        meet = meet & (back >= 0)[None]
    if rule.window:
        # The last token of a block and the first of a later one are next to each other.
        far = rule.window - 1 if rule.causal else rule.window
        meet = meet & ((jnp.abs(back) - 1) * block < far)[None]
    if prefixes is not None:
        meet = meet | reach_prefixes(segments, prefixes, block)
    return meet | (back == 0)[None]


def reach_prefixes(
    segments: Int[Array, "R T"], prefixes: Int[Array, "R T"], block: int
) -> Bool[Array, "R I I"]:
    """Which blocks hold what each block's texts begin with; none after a block."""
    low, high = _bounds(segments, block)
    most = jnp.iinfo(prefixes.dtype).max
    blocks = prefixes.reshape(*low.shape, block)
    first = jnp.min(jnp.where(blocks > 0, blocks, most), axis=-1)
    last = jnp.max(blocks, axis=-1)
    # Padding behind a text does not move where its block ends.
    meet = (low[:, None] <= last[:, :, None]) & (high[:, None] >= first[:, :, None])
    place = jnp.arange(low.shape[1])
    return meet & (place[:, None] >= place[None])[None]


def _bounds(
    segments: Int[Array, "R T"], block: int
) -> tuple[Int[Array, "R I"], Int[Array, "R I"]]:
    """The least and the greatest segment of each block; 0 and 0 for padding."""
    blocks = segments.reshape(segments.shape[0], -1, block)
    return blocks[:, :, 0], jnp.max(blocks, axis=-1)
