"""A model from its config: with parameters, or by shapes alone."""

from typing import Literal

import jax
from flax import nnx

from ranker import config
from ranker.models import adapters, layers
from ranker.models.heads import LanguageModel, Ranker

HeadKind = Literal["language", "score"]
POSITION_BIAS = "position_bias"  # name of the parameter


def build(
    settings: config.Decoder | config.Encoder,
    vocab_size: int,
    head: HeadKind,
    *,
    key: jax.Array,
    lora: config.Lora = config.NO_LORA,
    position_bias: int = 0,
) -> LanguageModel | Ranker:
    """A model with fresh float32 parameters.

    With `position_bias`, also a logit of each of so many positions of a results page.
    Training adds them to scores (training/objectives.py); nothing else reads them.

    Raises:
      ConfigError: for a language-model head on an encoder, or adapters of matrices
        that the model lacks.
    """
    rngs = nnx.Rngs(params=key)
    if head == "score":
        model = Ranker(settings, vocab_size, rngs=rngs)
    elif isinstance(settings, config.Decoder) and settings.causal:
        model = LanguageModel(settings, vocab_size, rngs=rngs)
    else:
        raise config.ConfigError(
            f"a language-model head needs a decoder, and {settings.family} reads both "
            "ways"
        )
    if lora.rank:
        adapters.attach(model, lora, rngs=rngs)
    if position_bias:
        setattr(model, POSITION_BIAS, layers.zeros((position_bias,), (None,)))
    return model


def abstract(
    settings: config.Decoder | config.Encoder,
    vocab_size: int,
    head: HeadKind,
    lora: config.Lora = config.NO_LORA,
    position_bias: int = 0,
) -> LanguageModel | Ranker:
    """The same model, its parameters replaced by their shapes; allocates nothing."""
    return nnx.eval_shape(
        lambda: build(
            settings,
            vocab_size,
            head,
            key=jax.random.key(0),
            lora=lora,
            position_bias=position_bias,
        )
    )
