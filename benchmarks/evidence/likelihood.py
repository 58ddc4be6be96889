"""E4: a decoder as it is, by the likelihood of the query given the passage.

Mean log-probability of the query's tokens after the passage and a request for a
question (Sachan et al., 2022, "Improving passage retrieval with zero-shot question
generation", arXiv 2204.07496).
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from setting import Run
from tokenizers import Tokenizer

from ranker import config, sharding
from ranker.batch import Rows
from ranker.models.huggingface import import_params, open_checkpoint
from ranker.training.state import make_network

REQUEST = "\nPlease write a question based on this passage.\nQuestion:"
QUERY = 32  # tokens of a query that count, at most
ROWS = 8  # pairs at a time


def score_all(run: Run) -> None:
    """Writes OUT/e4-likelihood.npz: scores [Q, K] of the first test queries."""
    path = run.out / "e4-likelihood.npz"
    data = run.nqqed
    rows = data.parts["test"][: run.sizes.queries]
    score, parameters = make_score(run)
    tokenizer = Tokenizer.from_file(str(run.args.smollm / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = [
        pairs_of(tokenizer, data.texts[row], run.sizes.smollm.length) for row in rows
    ]
    flat = [one for ones in texts for one in ones]
    start, found = time.monotonic(), []
    for first in range(0, len(flat), ROWS):
        tokens, asked = padded(flat[first : first + ROWS], run.sizes.smollm.length)
        found.append(np.asarray(score(tokens, asked)))
        if first % (50 * ROWS) == 0:
            print(
                f"  {first}/{len(flat)}, {time.monotonic() - start:.0f} s", flush=True
            )
    scores = np.concatenate(found)[: len(flat)].reshape(len(rows), -1)
    aside = path.with_name(f".{path.name}")
    seconds = time.monotonic() - start
    np.savez(aside, test=scores, seconds=seconds, parameters=parameters)
    aside.rename(path)


def pairs_of(tokenizer, text, length: int) -> list[tuple[list[int], list[int]]]:
    """Token ids of passage with request, and of the query, for each document."""
    query, documents = text
    encode = lambda one: tokenizer.encode(one, add_special_tokens=False).ids  # noqa: E731
    asked, request = encode(" " + query)[:QUERY], encode(REQUEST)
    room = length - len(asked) - len(request)
    if room < 8:
        raise SystemExit(
            f"{length} tokens leave {room} for a passage; read longer rows"
        )
    passages = [encode(f"Passage: {title} {body}")[:room] for title, body in documents]
    return [([*passage, *request], asked) for passage in passages]


def padded(pairs, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [ROWS, T] and first and last place [ROWS, 2] of the query's tokens."""
    tokens = np.zeros((ROWS, length), np.int32)
    asked = np.tile(np.int32([1, 2]), (ROWS, 1))
    for row, (before, query) in enumerate(pairs):
        ids = [*before, *query]
        tokens[row, : len(ids)] = ids
        asked[row] = len(before), len(ids)
    return tokens, asked


def make_score(run: Run):
    """A function of tokens and places to mean log-probabilities; parameters in all."""
    checkpoint = open_checkpoint(
        config.Pretrained(path=str(run.args.smollm), dtype=run.dtype())
    )
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    network = make_network(checkpoint.model, checkpoint.vocab_size, "language", mesh)
    taken, _ = import_params(
        checkpoint, "language", network.abstract, network.shardings
    )
    is_leaf = lambda x: isinstance(x, nnx.Variable)  # noqa: E731

    def place(path, variable):
        return variable.replace(taken[".".join(str(one.key) for one in path)])

    params = jax.tree_util.tree_map_with_path(place, network.abstract, is_leaf=is_leaf)

    @jax.jit
    def score(params, tokens, asked):
        model = nnx.merge(network.graphdef, params, nnx.State({}))
        at = jnp.arange(tokens.shape[1])[None]
        real = (at < asked[:, 1:]).astype(jnp.int32)
        hidden = model.body(Rows(tokens, real, at * real, 0 * real))
        places = asked[:, :1] + jnp.arange(QUERY)[None]  # [R, QUERY]
        counted = places < asked[:, 1:]
        before = jnp.take_along_axis(hidden, places[..., None] - 1, axis=1)
        logits = jax.nn.log_softmax(model.logits(before, model.table()))
        wanted = jnp.take_along_axis(
            tokens, jnp.minimum(places, tokens.shape[1] - 1), axis=1
        )
        each = jnp.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0]
        return jnp.sum(each * counted, axis=1) / jnp.sum(counted, axis=1)

    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return lambda *rows: score(params, *rows), size
