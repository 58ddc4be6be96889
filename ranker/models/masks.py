"""Which keys a query sees: the rule that all attention kernels share, and its mask."""

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
