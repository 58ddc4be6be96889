"""A model from its config: with parameters, or by shapes alone."""

from typing import Literal

import jax
from flax import nnx

from ranker import config
from ranker.models.heads import LanguageModel, Ranker

Head = Literal["language", "score"]


def build(
    settings: config.Decoder | config.Encoder,
    vocab_size: int,
    head: Head,
    *,
    key: jax.Array,
) -> LanguageModel | Ranker:
    """A model with fresh float32 parameters.

    Raises:
      ConfigError: for a language-model head on an encoder.
    """
    rngs = nnx.Rngs(params=key)
    if head == "score":
        return Ranker(settings, vocab_size, rngs=rngs)
    if not isinstance(settings, config.Decoder):
        raise config.ConfigError("a language-model head needs a decoder, found encoder")
    return LanguageModel(settings, vocab_size, rngs=rngs)


def abstract(
    settings: config.Decoder | config.Encoder, vocab_size: int, head: Head
) -> LanguageModel | Ranker:
    """The same model, its parameters replaced by their shapes; allocates nothing."""
    return nnx.eval_shape(
        lambda: build(settings, vocab_size, head, key=jax.random.key(0))
    )
