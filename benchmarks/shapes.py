"""Rerankers of known sizes with random weights, and texts of natural lengths.

Needs no prepared data: the texts are a BEIR folder's, or drawn with the lengths of
Natural Questions (queries of 9 words, paragraphs of 100), words by Zipf's law.
"""

import dataclasses
import json
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np
from flax import nnx

from ranker import config, sharding
from ranker.batch import PackedBatch
from ranker.data import pairs
from ranker.data.packing import Example, Layout, common_prefix, pack
from ranker.data.records import Document, RankedList
from ranker.data.text import Tokenizer, train_bpe, train_wordpiece, words_of
from ranker.models import build
from ranker.training import state

# https://huggingface.co/Qwen/Qwen3-Reranker-0.6B has a prompt of this kind and length.
PROMPT = (
    "Judge whether the document meets the requirements based on the query and the "
    'instruction provided. Note that the answer can only be "yes" or "no".\n'
    "Instruction: given a web search query, retrieve relevant passages that answer "
    "the query\nQuery: {query}\nDocument:||| {both}|||\nThe answer is:"
)


def qwen3_prompt() -> str:
    """Qwen3-Reranker's template, each of its special tokens as one word."""
    words = words_of("qwen3_reranker")
    assert words is not None
    parts = (words.begin + words.query, words.document, "".join(words.end))
    text = "|||".join(parts)
    for name in ("im_start", "im_end"):
        text = text.replace(f"<|{name}|>", f" {name.replace('_', '')} ")
    return text.replace("<think>", " think ").replace("</think>", " endthink ")


def _modernbert(layers: int, width: int, heads: int, mlp: int) -> config.Encoder:
    return config.Encoder(
        num_layers=layers,
        embed_dim=width,
        num_heads=heads,
        mlp_dim=mlp,
        max_positions=0,
        num_types=0,
        norm_eps=1e-5,
        family="modernbert",
        bias=False,
        pre_norm=True,
        first_norm=False,
        gated=True,
        head_activation="gelu",
        head_norm=True,
        window=64,
        local_layers=tuple(i for i in range(layers) if i % 3),
        rope_theta=160000.0,
        local_rope_theta=160000.0,
    )


def _bert(layers: int, width: int, heads: int) -> config.Encoder:
    return config.Encoder(
        num_layers=layers, embed_dim=width, num_heads=heads, mlp_dim=4 * width
    )


def _decoder(layers: int, width: int, heads: int, keys: int, mlp: int, **more: Any):
    return config.Decoder(
        num_layers=layers,
        embed_dim=width,
        num_heads=heads,
        num_kv_heads=keys,
        head_dim=128,
        mlp_dim=mlp,
        **more,
    )


# name: (model, vocabulary)
SHAPES: dict[str, tuple[config.Encoder | config.Decoder, int]] = {
    "tiny": (_bert(2, 64, 2), 8192),
    "minilm": (_bert(6, 384, 12), 30522),
    "bert-base": (_bert(12, 768, 12), 30522),
    "17m": (_modernbert(7, 256, 4, 384), 50368),
    "150m": (_modernbert(22, 768, 12, 1152), 50368),
    "1b": (_modernbert(28, 1792, 28, 3840), 50368),
    "qwen3-0.6b": (
        _decoder(28, 1024, 16, 8, 3072, family="qwen3", qk_norm=True),
        151936,
    ),
    "qwen2-1.5b": (
        _decoder(28, 1536, 12, 2, 8960, family="qwen2", qkv_bias=True),
        151936,
    ),
    "tiny-decoder": (
        dataclasses.replace(_decoder(2, 64, 2, 1, 128), head_dim=32),
        8192,
    ),
    "small-decoder": (
        dataclasses.replace(_decoder(6, 512, 8, 4, 1536), head_dim=64),
        8192,
    ),
}


def model_of(shape: str, dtype: config.DType) -> tuple[Any, int]:
    """The model's description and the size of its vocabulary."""
    model, vocab = SHAPES[shape]
    return dataclasses.replace(model, dtype=dtype), vocab


def make_network(model: Any, vocab: int) -> state.Network:
    """The model on all devices."""
    return state.make_network(model, vocab, "score", sharding.make_mesh(config.Mesh()))


def random_params(network: state.Network, vocab: int, dtype: str = "float32") -> Any:
    """Fresh parameters, made on the devices, kept in `dtype`."""

    def make():
        key = jax.random.key(0)
        model = build.build(network.model, vocab, "score", key=key)
        params = nnx.state(model, nnx.Param)
        return jax.tree.map(lambda x: x.astype(dtype), params)

    with jax.set_mesh(network.mesh):
        return jax.jit(make, out_shardings=network.shardings)()


@dataclasses.dataclass(frozen=True)
class Texts:
    """Queries, each with some documents."""

    corpus: list[Document]
    lists: list[RankedList]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Query and document of each candidate, in order."""
        return [
            (one.query, f"{document.title} {document.text}".strip())
            for one in self.lists
            for document in (self.corpus[int(row)] for row in one.documents)
        ]


def make_texts(folder: str, *, queries: int, list_size: int, seed: int = 0) -> Texts:
    """Texts of a BEIR folder, or drawn where `folder` is empty."""
    generator = np.random.default_rng(seed)
    if folder:
        path = pathlib.Path(folder)
        corpus = [
            Document(one["_id"], one.get("title", ""), one["text"])
            for one in _lines(path / "corpus.jsonl")
        ]
        asked = [one["text"] for one in _lines(path / "queries.jsonl")]
    else:
        letters = np.array(list("etaoinshrdlu"))
        words = np.array(
            [
                "".join(generator.choice(letters, n))
                for n in generator.integers(2, 9, 9000)
            ]
        )

        def draw(count: int) -> str:
            ranks = generator.zipf(1.2, count) % len(words)
            return " ".join(words[ranks])

        lengths = np.exp(generator.normal(np.log(90), 0.45, 4000)).astype(int) + 5
        corpus = [
            Document(str(i), draw(2), draw(int(n))) for i, n in enumerate(lengths)
        ]
        asked = [draw(9) for _ in range(queries)]
    lists = []
    for number in range(queries):
        rows = generator.choice(len(corpus), list_size, replace=False)
        lists.append(
            RankedList(
                query_id=str(number),
                query=asked[number % len(asked)],
                documents=rows.astype(np.int32),
                labels=(np.arange(list_size) == 0).astype(np.float32),
                first_stage=np.zeros(list_size, np.float32),
                judged_ids=(),
                judged_grades=np.zeros(0, np.int32),
            )
        )
    return Texts(corpus, lists)


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def make_tokenizer(
    texts: Texts,
    model: Any,
    folder: pathlib.Path | None = None,
    prompt: str = PROMPT,
):
    """A tokenizer trained on the texts, with the template of such a model."""
    path = folder or pathlib.Path(tempfile.mkdtemp(prefix="shapes-"))
    words = [f"{one.title} {one.text}" for one in texts.corpus]
    words += [one.query for one in texts.lists]
    if isinstance(model, config.Decoder):
        train_bpe([*words, *[prompt] * 50], 8000, path)
        return Tokenizer(path, prompt)
    train_wordpiece(words, 8000, path)
    return Tokenizer(path, "pair")


def matmul_flops(size: int, dtype: str) -> float:
    """FLOP/s of this machine in products of two square matrices.

    The best of five times that some are made one after the other, each of the result of
    the one before.
    """
    a = jax.random.normal(jax.random.key(0), (size, size), dtype) / size**0.5
    multiply = jax.jit(lambda x, y: x @ y)
    in_a_row = 1 if jax.default_backend() == "cpu" else 20
    multiply(a, a).block_until_ready()
    times = []
    for _ in range(5):
        start, product = time.perf_counter(), a
        for _ in range(in_a_row):
            product = multiply(product, a)
        product.block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 * in_a_row / min(times)


def model_flops(model: config.Decoder | config.Encoder, context: float) -> float:
    """FLOP a token to score documents: matrix products and attention, no embeddings.

    The last layer's output projection and MLP run for a token a document: not counted.

    Args:
      model: its sizes.
      context: tokens that a token attends to, on average.
    """
    D, F, L = model.embed_dim, model.mlp_dim, model.num_layers
    if isinstance(model, config.Decoder):
        width = model.num_heads * model.head_dim
        narrow = model.num_kv_heads * model.head_dim
        inputs, outputs = D * width + 2 * D * narrow, D * width + 3 * D * F
        context = context / 2  # causal
    else:
        width = D
        inputs, outputs = 3 * D * D, D * D + (3 if model.gated else 2) * D * F
    return 2 * (L * (inputs + 2 * width * context) + (L - 1) * outputs)


def mean_context(lengths: np.ndarray) -> float:
    """Tokens that a token attends to, on average over the tokens of texts."""
    return float((lengths.astype(np.float64) ** 2).sum() / lengths.sum())


@dataclasses.dataclass(frozen=True)
class Packed:
    """Training batches of one micro-batch each, and what they hold."""

    batches: list[PackedBatch]  # numpy leaves, [1, R, ...]
    lists: int  # in all batches
    documents: int
    tokens: int  # real ones that are computed
    needed: int  # real ones of a row a pair
    context: float  # tokens that a token attends to, on average


def pack_lists(
    texts: Texts, encoder: pairs.ListEncoder, *, size: int, list_size: int, steps: int
) -> Packed:
    """Batches as fine-tuning sees them, of `size` lists of full length each."""
    layout = Layout(rows=size * list_size, length=encoder.length, size=list_size)
    if encoder.shared:
        layout = pairs.share(layout)
    waiting = []
    for one, segments in zip(
        texts.lists,
        encoder.many([(x.query, x.documents[:list_size]) for x in texts.lists]),
        strict=True,
    ):
        labels = one.labels[:list_size]
        shared = common_prefix(segments) if encoder.shared else 0
        waiting.append(Example(segments, labels, labels * 0, shared))
    lengths = np.array([n for one in waiting for n in one.lengths])
    again, batches = waiting, []
    lists = documents = tokens = needed = 0
    for _ in range(steps):
        if sum(one.total for one in waiting) < 2 * layout.tokens:
            waiting = [*waiting, *again]
        window = waiting[: 8 * layout.lists]
        choice = pairs.choose_any(window, layout)
        taken = [window[i] for i in choice.places]
        batch = pack(taken, choice.rows, layout, pad=encoder.tokenizer.pad)
        gone = set(choice.places)
        waiting = [one for i, one in enumerate(waiting) if i not in gone]
        lists += len(taken)
        documents += sum(len(one.segments) for one in taken)
        needed += sum(sum(one.lengths) for one in taken)
        tokens += int((batch.rows.segments > 0).sum())
        batches.append(jax.tree.map(lambda leaf: leaf[None], batch))
    return Packed(batches, lists, documents, tokens, needed, mean_context(lengths))
