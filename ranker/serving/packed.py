"""A model of this package scores pairs: packed into rows of few static shapes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from ranker import config, sharding
from ranker.batch import Rows
from ranker.data.packing import Example, Layout, choose_documents, pack
from ranker.data.text import Segment
from ranker.errors import DataError, ModelError
from ranker.models import build
from ranker.models.huggingface import Checkpoint, flat, import_params

_CPU_TOKENS, _TOKENS = 2048, 32768  # a batch, on a CPU and on other devices
_WINDOW = 8  # batches' worth of pairs that packing chooses from
_LOG = logging.getLogger("ranker")
_LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512)  # of rows; beyond: multiples of 512


@dataclass(frozen=True)
class PackedModel:
    """A model with its parameters on one device."""

    model: config.Decoder | config.Encoder
    vocab_size: int
    params: Any  # nnx.State, float32
    score: Any  # compiled: params, rows and score_index [B, 1] to scores [B, 1]

    @classmethod
    def of(
        cls,
        graphdef: nnx.GraphDef,
        params: Any,
        model: config.Decoder | config.Encoder,
        vocab_size: int,
    ) -> "PackedModel":
        """A network with these parameters."""

        def score(params: Any, rows: Rows, index: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, params)(rows, index)  # type: ignore[operator]

        return cls(model, vocab_size, params, jax.jit(score))

    def __call__(self, segments: Sequence[Segment]) -> Float[np.ndarray, " n"]:
        """Raw float32 scores, in the order of the segments.

        Raises:
          DataError: for a token that the model has no embedding of.
        """
        if not segments:
            return np.zeros(0, np.float32)
        check_tokens(segments, self.vocab_size)
        none = np.zeros(1, np.float32)
        scores = np.zeros(len(segments), np.float32)
        layout = _layout(max(len(one.tokens) for one in segments))
        waiting = sorted(range(len(segments)), key=lambda i: -len(segments[i].tokens))
        with jax.default_matmul_precision("highest"):
            while waiting:
                window = waiting[: _WINDOW * layout.lists]
                chosen = choose_documents(
                    [[len(segments[i].tokens)] for i in window], layout
                )
                taken = [window[place] for place in chosen.places]
                examples = [Example([segments[i]], none, none) for i in taken]
                batch = pack(examples, chosen.rows, layout, pad=0)
                found = self.score(self.params, batch.rows, batch.score_index)
                scores[taken] = np.asarray(found, np.float32)[: len(taken), 0]
                gone = set(taken)
                waiting = [i for i in waiting if i not in gone]
        return scores


def check_tokens(segments: Sequence[Segment], vocab_size: int) -> None:
    """Every token has an embedding.

    Raises:
      DataError: naming the pair and the id: it would score NaN, or as another token.
    """
    for i, one in enumerate(segments):
        if len(one.tokens) and max(one.tokens) >= vocab_size:
            raise DataError(
                f"pair {i} has the token id {max(one.tokens)}, but the model has "
                f"embeddings for {vocab_size}: the tokenizer is another model's, or a "
                "text holds one of its special tokens; remove that word"
            )
        if not len(one.tokens):
            raise DataError(f"pair {i} is empty: query and document have no token")


def row_length(longest: int) -> int:
    """Tokens of the rows that a pair of so many is put into, one of few."""
    for length in _LENGTHS:
        if longest <= length:
            return length
    return -(-longest // _LENGTHS[-1]) * _LENGTHS[-1]


def _layout(longest: int) -> Layout:
    T = row_length(longest)
    tokens = _CPU_TOKENS if jax.default_backend() == "cpu" else _TOKENS
    return Layout(rows=max(tokens // T, 1), length=T, size=1)


def place_weights(checkpoint: Checkpoint) -> PackedModel:
    """Reads a checkpoint's weights onto the first device.

    Raises:
      ModelError: when they cannot be read, or give no score.
    """
    model = checkpoint.model
    for note in checkpoint.notes:
        _LOG.warning("%s: %s", checkpoint.folder, note)
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    whole = build.abstract(model, checkpoint.vocab_size, "score")
    graphdef, abstract = nnx.split(whole, nnx.Param)
    shardings = sharding.parameter_shardings(abstract, mesh)
    found, _ = import_params(checkpoint, "score", abstract, shardings)
    missing = [path for path, _ in flat(abstract) if path not in found]
    if missing:
        raise ModelError(
            f"{checkpoint.folder}: the weights have no {', '.join(missing)}: there is "
            "no score head, and a fresh one would score at random; train it first, or "
            "load a checkpoint that ranks"
        )

    def filled(path: tuple, leaf: nnx.Variable) -> nnx.Variable:
        return leaf.replace(found[".".join(str(getattr(k, "key", k)) for k in path)])

    is_leaf = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    params = jax.tree_util.tree_map_with_path(filled, abstract, is_leaf=is_leaf)

    return PackedModel.of(graphdef, params, model, checkpoint.vocab_size)
