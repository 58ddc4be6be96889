"""E4: untrained models: MiniLM's cosine, SmolLM2's likelihood.

The likelihood is the mean log-probability of the query's tokens after the passage and a
request for a question (Sachan et al., 2022, "Improving passage retrieval with zero-shot
question generation", arXiv 2204.07496).
"""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import population
from flax import nnx
from setting import Run
from tokenizers import Tokenizer

from ranker import config, sharding
from ranker.batch import Rows
from ranker.models.huggingface import import_params, open_checkpoint
from ranker.models.params import unflat
from ranker.training.state import make_network

REQUEST = "\nPlease write a question based on this passage.\nQuestion:"
QUERY = 32  # tokens of a query that count, at most
ROWS = 8  # pairs at a time
CHUNK = 20  # queries of a file: what a killed run loses at most
WIDTH = 32  # texts are embedded in rows of a multiple of so many tokens

Texts = list[tuple[str, list[tuple[str, str]]]]  # query, (title, text) of documents


def cosine_part(run: Run) -> None:
    """Writes OUT/e4-cosine/000.npz and so on: MiniLM's cosine on test."""
    rows = run.nqqed.parts["test"]
    in_chunks(run, "e4-cosine", rows, make_cosine)


def likelihood_part(run: Run) -> None:
    """Writes OUT/e4-likelihood/000.npz and so on: SmolLM2's, of the first queries."""
    rows = run.nqqed.parts["test"][: run.sizes.queries]
    in_chunks(run, "e4-likelihood", rows, make_likelihood)


def in_chunks(
    run: Run,
    name: str,
    rows: np.ndarray,
    make: Callable[[Run], tuple[Callable[[Texts], np.ndarray], int]],
) -> None:
    """Scores the candidates of some queries of nqqed, CHUNK of them a file.

    Args:
      run: where things are.
      name: of the folder.
      rows: of the queries.
      make: gives a function of texts to scores [n, K], and the number of parameters.
    """
    folder = run.out / name
    folder.mkdir(parents=True, exist_ok=True)
    made = None
    for number, first in enumerate(range(0, len(rows), CHUNK)):
        path = folder / f"{number:03d}.npz"
        if path.exists():
            continue
        score, parameters = made = made or make(run)
        start = time.monotonic()
        chosen = rows[first : first + CHUNK]
        scores = score([run.nqqed.texts[row] for row in chosen])
        seconds = time.monotonic() - start
        aside = folder / f".{path.name}"
        np.savez(aside, test=scores, seconds=seconds, parameters=parameters)
        aside.rename(path)
        print(
            f"{name} {number:03d}: {len(chosen)} queries, {seconds:.0f} s", flush=True
        )


def read_tokenizer(folder: pathlib.Path) -> Tokenizer:
    """A folder's tokenizer, which neither cuts nor pads."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


# --- MiniLM's cosine ---


def make_cosine(run: Run) -> tuple[Callable[[Texts], np.ndarray], int]:
    """Cosine of query and document times 10, by mean pooling, untrained."""
    length = run.sizes.nqqed.length
    tokenizer = read_tokenizer(run.args.minilm)
    model = population.load(run.args.minilm, "", "float32")
    params = model.fresh(jax.random.key(0))
    embed = jax.jit(model.vectors)

    def vectors(texts: list[str]) -> np.ndarray:
        ids = [one.ids[:length] for one in tokenizer.encode_batch(texts)]
        order = np.argsort([len(one) for one in ids], kind="stable")
        found = np.zeros((len(ids), 0), np.float32)
        for first in range(0, len(ids), 64):
            chosen = order[first : first + 64]
            width = -(-max(len(ids[i]) for i in chosen) // WIDTH) * WIDTH
            tokens = np.zeros((64, width), np.int32)
            lengths = np.ones(64, np.int32)
            for row, i in enumerate(chosen):
                tokens[row, : len(ids[i])], lengths[row] = ids[i], len(ids[i])
            some = np.asarray(embed(params, tokens, lengths))[: len(chosen)]
            if not found.size:
                found = np.zeros((len(ids), some.shape[1]), np.float32)
            found[chosen] = some
        return found

    def score(texts: Texts) -> np.ndarray:
        documents = [f"{a} {b}".strip() for _, pairs in texts for a, b in pairs]
        unique = {text: i for i, text in enumerate(dict.fromkeys(documents))}
        known, asked = vectors(list(unique)), vectors([query for query, _ in texts])
        rows = np.reshape([unique[one] for one in documents], (len(texts), -1))
        return 10 * np.einsum("qd,qkd->qk", asked, known[rows])

    return score, model.parameters


# --- SmolLM2's likelihood ---


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


def make_likelihood(run: Run) -> tuple[Callable[[Texts], np.ndarray], int]:
    """Mean log-probability of each query after each of its passages."""
    tokenizer, length = read_tokenizer(run.args.smollm), run.sizes.smollm.length
    of_tokens, parameters = make_log_probability(run)

    def score(texts: Texts) -> np.ndarray:
        pairs = [one for each in texts for one in pairs_of(tokenizer, each, length)]
        found = []
        for first in range(0, len(pairs), ROWS):
            found.append(of_tokens(*padded(pairs[first : first + ROWS], length)))
        return np.concatenate(found)[: len(pairs)].reshape(len(texts), -1)

    return score, parameters


def make_log_probability(run: Run) -> tuple[Callable[..., np.ndarray], int]:
    """A function of `padded`'s arrays to mean log-probabilities [ROWS]."""
    checkpoint = open_checkpoint(
        config.Pretrained(path=str(run.args.smollm), dtype=run.dtype())
    )
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    network = make_network(checkpoint.model, checkpoint.vocab_size, "language", mesh)
    taken, _ = import_params(
        checkpoint, "language", network.abstract, network.shardings
    )
    params = unflat(taken, network.abstract)

    @jax.jit
    def score(params, tokens, asked):
        model: Any = nnx.merge(network.graphdef, params, nnx.State({}))
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
    return lambda *rows: np.asarray(score(params, *rows)), size
