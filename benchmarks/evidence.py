"""Many students of one teacher at once: which loss, which layers, how many labels.

    python benchmarks/evidence.py --data NQQED --minilm MINILM --out runs/evidence
    python benchmarks/evidence.py --out runs/evidence --status
    python benchmarks/evidence.py --data NQQED --out runs/evidence --analyse

The protocol is docs/protocol.md. All students of a part have the same shape, so they
train as one program: parameters, order of the data, dropout, learning rate and the
weights of the losses have a leading axis of students. A part writes OUT/PART.npz (raw
scores of every student on dev and test) and is not run again; `--analyse` reads those
and prints the tables. MINILM is a folder of all-MiniLM-L6-v2; `--smollm FOLDER` adds
SmolLM2-135M-Instruct as a teacher.
"""

import argparse
import dataclasses
import functools
import gzip
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402

from ranker import config, sharding  # noqa: E402
from ranker.batch import Rows  # noqa: E402
from ranker.losses import distillation, listwise, margins  # noqa: E402
from ranker.models import build  # noqa: E402
from ranker.models.decoder import Decoder  # noqa: E402
from ranker.models.huggingface import flat, import_params, open_checkpoint  # noqa: E402
from ranker.training.state import make_network  # noqa: E402

CANDIDATES = 10
LENGTH = 128  # tokens a pair
LISTS = 4  # of a step, with all their candidates
TEST, DEV, UNLABELLED, LABELLED = 3000, 500, 2000, 200
RATES = (5e-5, 1e-4, 3e-4)
SEEDS = 8
STEPS = 500  # one epoch of the unlabelled lists
TEACHER_STEPS = 200
LAYERS = {"2": "4,5", "3": "0,2,4", "4": "0,1,2,4", "6": "0,1,2,3,4,5"}

# --- data -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Collection:
    """Queries with ten candidates each; Q queries, K candidates."""

    ids: list[str]
    grades: np.ndarray  # [Q, K] float32, of the candidates
    best: np.ndarray  # [Q] float32, the highest grade of any judged document
    bm25: np.ndarray  # [Q, K] float32
    texts: list[tuple[str, list[str]]]  # query, documents
    parts: dict[str, np.ndarray]  # name of a split -> rows


def _lines(path: pathlib.Path):
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open()
    with opened as file:
        yield from file


def read(folder: pathlib.Path) -> Collection:
    """All judged queries of a BEIR folder with BM25 runs, split by the protocol."""
    corpus = {
        one["_id"]: f"{one.get('title', '')} {one['text']}".strip()
        for one in map(json.loads, _lines(folder / "corpus.jsonl.gz"))
    }
    queries = {
        one["_id"]: one["text"]
        for one in map(json.loads, _lines(folder / "queries.jsonl"))
    }
    grades: dict[str, dict[str, float]] = {}
    for path in sorted((folder / "qrels").glob("*.tsv")):
        for line in list(_lines(path))[1:]:
            query, document, grade = line.split("\t")
            grades.setdefault(query, {})[document] = float(grade)
    run: dict[str, list[tuple[str, float]]] = {}
    for path in sorted((folder / "runs").glob("bm25.*")):
        for line in _lines(path):
            query, _, document, rank, score, _ = line.split()
            if int(rank) <= CANDIDATES:
                run.setdefault(query, []).append((document, float(score)))
    usable = {query for query in grades if len(run.get(query, ())) == CANDIDATES}
    ids = sorted(usable, key=lambda one: hashlib.sha256(one.encode()).hexdigest())
    rows = np.arange(len(ids))
    cuts = np.cumsum([TEST, DEV, UNLABELLED])
    names = ("test", "dev", "unlabelled", "labelled")
    return Collection(
        ids=ids,
        grades=np.float32([[grades[q].get(d, 0.0) for d, _ in run[q]] for q in ids]),
        best=np.float32([max(grades[q].values()) for q in ids]),
        bm25=np.float32([[score for _, score in run[q]] for q in ids]),
        texts=[(queries[q], [corpus[d] for d, _ in run[q]]) for q in ids],
        parts=dict(zip(names, np.split(rows, cuts), strict=True)),
    )


def tokenise(data: Collection, folder: pathlib.Path, template: str) -> dict[str, Any]:
    """Token ids [Q, K, T], lengths [Q, K] and starts of the document, by a tokenizer.

    Args:
      data: queries and documents.
      folder: that holds tokenizer.json.
      template: "pair" for an encoder, "prompt" for a decoder.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    plain = functools.partial(tokenizer.encode_batch, add_special_tokens=False)
    if template == "pair":
        asked = [query for query, _ in data.texts]
        read = [one for _, documents in data.texts for one in documents]
        first = [tokenizer.token_to_id("[CLS]")]
        after = [tokenizer.token_to_id("[SEP]")]
        end = after
    else:
        asked = [f"query: {query}\n" for query, _ in data.texts]
        read = [f"document: {one}" for _, ones in data.texts for one in ones]
        first, after, end = [], [], [tokenizer.token_to_id("<|im_end|>")]
    heads = [[*first, *one.ids[:48], *after] for one in plain(asked)]
    bodies = [one.ids for one in plain(read)]
    Q, K = data.grades.shape
    tokens = np.zeros((Q, K, LENGTH), np.int32)
    lengths = np.zeros((Q, K), np.int32)
    starts = np.zeros((Q, K), np.int32)
    for row, head in enumerate(heads):
        for place in range(K):
            body = bodies[row * K + place][: LENGTH - len(head) - len(end)]
            ids = [*head, *body, *end]
            tokens[row, place, : len(ids)] = ids
            lengths[row, place], starts[row, place] = len(ids), len(head)
    return {"tokens": tokens, "lengths": lengths, "starts": starts}


# --- models ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint with a score head, as a function of its parameters."""

    network: Any
    base: Any  # parameters of the checkpoint, the head fresh
    fresh: Callable[[jax.Array], Any]  # key -> parameters with another fresh head

    def scores(self, params, tokens, lengths, starts, key=None):
        """Scores [R] of rows of tokens [R, T], one text a row."""
        at = jnp.arange(tokens.shape[-1])[None]
        real = at < lengths[:, None]
        model = nnx.merge(self.network.graphdef, params, nnx.State({}))
        inputs = Rows(
            tokens,
            real.astype(jnp.int32),
            jnp.where(real, at, 0),
            (at >= starts[:, None]).astype(jnp.int32) * real,
        )
        rows = jnp.arange(tokens.shape[0])
        decoder = isinstance(model.body, Decoder)
        place = rows * tokens.shape[1] + (lengths - 1 if decoder else 0)
        return model(inputs, place[:, None], key=key)[:, 0]


def load(path: pathlib.Path, layers: str, dtype: str) -> Model:
    """A checkpoint with a fresh score head."""
    settings = config.Pretrained(
        path=str(path), keep_layers=layers, fresh_head=True, dtype=dtype
    )
    checkpoint = open_checkpoint(settings)
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    network = make_network(checkpoint.model, checkpoint.vocab_size, "score", mesh)
    taken, _ = import_params(checkpoint, "score", network.abstract, network.shardings)

    def fresh(key):
        model = build.build(checkpoint.model, checkpoint.vocab_size, "score", key=key)
        return nnx.state(model, nnx.Param)

    def with_head(key):
        found = {**dict(flat(fresh(key))), **taken}

        def place(path, variable):
            name = ".".join(str(getattr(one, "key", one)) for one in path)
            return variable.replace(found[name])

        is_leaf = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
        return jax.tree_util.tree_map_with_path(
            place, network.abstract, is_leaf=is_leaf
        )

    return Model(network, with_head(jax.random.key(0)), with_head)


# --- training -------------------------------------------------------------------------

# Every loss that an arm can weigh: (scores, targets, labels) -> WeightedSum.
LOSSES: dict[str, Callable] = {
    "softmax": lambda s, t, y, w: listwise.softmax(s, y, where=w),
    "point": lambda s, t, y, w: distillation.point_mse(s, t, where=w),
    "margin": lambda s, t, y, w: distillation.margin_mse(s, t, where=w),
    "margin_top": lambda s, t, y, w: distillation.margin_mse(
        s, t, where=w, pairs=margins.of_top(t, w, top=1)
    ),
    "kl": lambda s, t, y, w: distillation.listwise_kl(s, t, where=w),
    "soft": lambda s, t, y, w: distillation.soft_cross_entropy(
        s, jax.nn.sigmoid(t), where=w
    ),
}
# Arms of E1: name -> weight of each loss.
ARMS: dict[str, dict[str, float]] = {
    "labels": {"softmax": 1},
    "point": {"point": 1},
    "margin": {"margin": 1},
    "hybrid": {"point": 1, "margin": 1},
    "margin_top": {"margin_top": 1},
    "hybrid_top": {"point": 1, "margin_top": 1},
    "kl": {"kl": 1},
    "soft": {"soft": 1},
}


@dataclasses.dataclass(frozen=True)
class Student:
    """One member of a population."""

    name: str
    arm: str
    seed: int
    rate: float
    pool: np.ndarray  # rows that it trains on


def _order(student: Student, steps: int) -> np.ndarray:
    """Rows of each step [S, LISTS]; a function of the seed and the pool alone."""
    draw = np.random.default_rng(student.seed)
    epochs = -(-steps * LISTS // len(student.pool))
    rows = np.concatenate([draw.permutation(student.pool) for _ in range(epochs)])
    return rows[: steps * LISTS].reshape(steps, LISTS)


def train(
    model: Model,
    bank: dict[str, jax.Array],
    targets: jax.Array,
    labels: jax.Array,
    students: list[Student],
    steps: int = STEPS,
):
    """Parameters of the trained students, stacked."""
    used = [k for k in LOSSES if any(k in ARMS[s.arm] for s in students)]
    coefficients = jnp.float32(
        [[ARMS[s.arm].get(k, 0) for k in used] for s in students]
    )
    rates = jnp.float32([s.rate for s in students])
    order = np.stack([_order(s, steps) for s in students], axis=1)  # [S, P, LISTS]
    keys = jnp.stack([jax.random.key(s.seed) for s in students])
    params = jax.vmap(model.fresh)(keys)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.999))
    warmup = max(steps // 10, 1)

    def loss(params, weights, rows, key, bank, targets, labels):
        at = {name: one[rows].reshape(-1, *one.shape[2:]) for name, one in bank.items()}
        scores = model.scores(params, **at, key=key).reshape(LISTS, -1)
        where = jnp.ones_like(scores, bool)
        parts = [LOSSES[k](scores, targets[rows], labels[rows], where) for k in used]
        return sum(w * part.mean() for w, part in zip(weights, parts, strict=True))

    def update(params, state, weights, rate, rows, key, *data):
        value, grads = jax.value_and_grad(loss)(params, weights, rows, key, *data)
        updates, state = tx.update(grads, state)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        return params, state, value

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, rows, number, *data):
        scale = jnp.minimum(number / warmup, (steps - number) / (steps - warmup))
        drawn = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
        each = (params, state, coefficients, rates * scale, rows, drawn)
        axes = (*[0] * len(each), *[None] * len(data))
        return jax.vmap(update, in_axes=axes)(*each, *data)

    state = jax.vmap(tx.init)(params)
    start = time.monotonic()
    for number in range(1, steps + 1):
        params, state, value = step(
            params, state, order[number - 1], number, bank, targets, labels
        )
        if number in (1, 10) or number % 100 == 0:
            value = np.asarray(value)
            print(
                f"  step {number}/{steps}, {time.monotonic() - start:.0f} s, "
                f"mean loss {value.mean():.3f}",
                flush=True,
            )
    return params


def score(model: Model, params, bank, rows: np.ndarray, lists: int = 50) -> np.ndarray:
    """Scores [P, len(rows), K] of every student."""

    @jax.jit
    def part(params, chosen, bank):
        at = {k: one[chosen].reshape(-1, *one.shape[2:]) for k, one in bank.items()}
        return jax.vmap(lambda p: model.scores(p, **at))(params)

    parts = []
    for first in range(0, len(rows), lists):
        chosen = rows[first : first + lists]
        padded = np.resize(chosen, lists)
        found = np.asarray(part(params, padded, bank))
        parts.append(found.reshape(found.shape[0], lists, -1)[:, : len(chosen)])
    return np.concatenate(parts, axis=1)


def cosine(folder: pathlib.Path, data: Collection) -> np.ndarray:
    """MiniLM's untrained cosine [Q, K] of a query and its documents, times 10."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    model = load(folder, "", "float32")

    @jax.jit
    def embed(params, tokens, lengths):
        at = jnp.arange(tokens.shape[1])[None]
        real = at < lengths[:, None]
        body = nnx.merge(model.network.graphdef, params, nnx.State({})).body
        ids = real.astype(jnp.int32)
        hidden = body(Rows(tokens, ids, at * ids, 0 * ids))
        mean = jnp.sum(hidden * real[..., None], 1) / lengths[:, None]
        return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)

    def vectors(texts):
        ids = [one.ids[:LENGTH] for one in tokenizer.encode_batch(texts)]
        parts = []
        for first in range(0, len(ids), 256):
            chunk = ids[first : first + 256]
            tokens = np.zeros((256, LENGTH), np.int32)
            for row, one in enumerate(chunk):
                tokens[row, : len(one)] = one
            lengths = np.int32([*map(len, chunk), *[1] * (256 - len(chunk))])
            parts.append(np.asarray(embed(model.base, tokens, lengths))[: len(chunk)])
        return np.concatenate(parts)

    unique = {text: i for i, text in enumerate({d for _, ds in data.texts for d in ds})}
    documents = vectors(list(unique))
    queries = vectors([query for query, _ in data.texts])
    chosen = np.array([[unique[d] for d in ds] for _, ds in data.texts])
    return 10 * np.einsum("qd,qkd->qk", queries, documents[chosen])


# --- parts ----------------------------------------------------------------------------


def ndcg(scores: np.ndarray, data: Collection, rows: np.ndarray) -> np.ndarray:
    """NDCG@10 of each query [..., Q]; the ideal holds the judged documents alone."""
    order = np.argsort(-scores, axis=-1, kind="stable")
    grades = np.broadcast_to(data.grades[rows], scores.shape)
    gains = np.take_along_axis(grades, order, axis=-1)
    discounts = 1 / np.log2(np.arange(2, CANDIDATES + 2))
    return (gains * discounts).sum(-1) / data.best[rows]


class Run:
    """Data, tokens and teacher scores that the parts share, made when first needed."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.data = read(args.data)
        self.scores: dict[str, np.ndarray] = {}

    @functools.cached_property
    def bank(self) -> dict[str, jax.Array]:
        """Tokenised pairs of MiniLM."""
        found = tokenise(self.data, self.args.minilm, "pair")
        return {name: jnp.asarray(one) for name, one in found.items()}

    def labels(self) -> jax.Array:
        """Grades [Q, K]."""
        return jnp.asarray(self.data.grades)

    def dtype(self) -> str:
        """What models compute in here."""
        return "bfloat16" if jax.default_backend() == "gpu" else "float32"

    def teacher(self, name: str) -> np.ndarray:
        """Raw scores [Q, K] of all pairs by a teacher, kept in OUT/teacher_NAME.npy."""
        path = self.args.out / f"teacher_{name}.npy"
        if path.exists():
            return np.load(path)
        if name == "cosine":
            found = cosine(self.args.minilm, self.data)
        else:
            found = self._tuned(name)
        np.save(path, found)
        return found

    def _tuned(self, name: str) -> np.ndarray:
        if name == "minilm":
            model, bank = load(self.args.minilm, "", self.dtype()), self.bank
        else:
            model = load(self.args.smollm, "", self.dtype())
            tokens = tokenise(self.data, self.args.smollm, "prompt")
            bank = {key: jnp.asarray(one) for key, one in tokens.items()}
        pool = self.data.parts["labelled"][:LABELLED]
        one = Student(name, "labels", 0, 1e-4, pool)
        zeros = jnp.zeros_like(self.labels())
        steps = self.args.teacher_steps
        params = train(model, bank, zeros, self.labels(), [one], steps)
        return score(model, params, bank, np.arange(len(self.data.ids)))[0]

    def targets(self, name: str) -> jax.Array:
        """A teacher's scores standardised over the lists that it labels."""
        found = self.teacher(name)
        known = found[self.data.parts["unlabelled"]]
        return jnp.asarray((found - known.mean()) / known.std())

    def population(self, key: str, layers: str, teacher: str, students) -> None:
        """Trains, scores dev and test, and writes OUT/KEY.npz."""
        path = self.args.out / f"{key}.npz"
        if path.exists():
            print(f"{key}: finished before")
            return
        print(f"{key}: {len(students)} students of layers {layers}", flush=True)
        start = time.monotonic()
        model = load(self.args.minilm, layers, self.dtype())
        targets, labels = self.targets(teacher), self.labels()
        dev, test = [], []
        for first in range(0, len(students), self.args.at_once):
            group = students[first : first + self.args.at_once]
            params = train(model, self.bank, targets, labels, group, self.args.steps)
            dev.append(score(model, params, self.bank, self.data.parts["dev"]))
            if not key.startswith(("rates", "layers")):
                test.append(score(model, params, self.bank, self.data.parts["test"]))
        aside = path.with_suffix(".part.npz")
        np.savez(
            aside,
            dev=np.concatenate(dev),
            test=np.concatenate(test) if test else np.zeros(0),
            members=json.dumps(
                [[s.name, s.arm, s.seed, s.rate, len(s.pool)] for s in students]
            ),
            seconds=time.monotonic() - start,
        )
        aside.rename(path)
        print(f"{key}: {time.monotonic() - start:.0f} s", flush=True)

    def pool(self, arm: str) -> np.ndarray:
        """The lists that an arm learns from."""
        if arm == "labels":
            return self.data.parts["labelled"][:LABELLED]
        return self.data.parts["unlabelled"]

    def best_rate(self, teacher: str) -> dict[str, float]:
        """Learning rate of each arm, by NDCG@10 on dev with a seed of its own."""
        key = f"rates_{teacher}"
        students = [
            Student(f"{arm}@{rate}", arm, 1000, rate, self.pool(arm))
            for arm in ARMS
            for rate in RATES
        ]
        self.population(key, LAYERS[self.args.layers], teacher, students)
        found = np.load(self.args.out / f"{key}.npz")
        values = ndcg(found["dev"], self.data, self.data.parts["dev"]).mean(-1)
        best: dict[str, tuple[float, float]] = {}
        for student, value in zip(students, values, strict=True):
            best[student.arm] = max(
                best.get(student.arm, (-1.0, 0.0)), (float(value), student.rate)
            )
        for arm, (value, rate) in best.items():
            print(f"  {arm}: rate {rate:g}, dev NDCG@10 {value:.4f}")
        return {arm: rate for arm, (_, rate) in best.items()}


def part_layers(run: Run) -> None:
    """E0: students of 2, 3, 4 and 6 layers by the hybrid, three rates and seeds."""
    for name, layers in LAYERS.items():
        students = [
            Student(f"{name}@{rate}", "hybrid", seed, rate, run.pool("hybrid"))
            for rate in RATES
            for seed in range(1000, 1003)
        ]
        run.population(f"layers_{name}", layers, "minilm", students)


def part_loss(run: Run) -> None:
    """E1: every arm with 8 seeds, for each teacher."""
    for teacher in run.args.teachers:
        rates = run.best_rate(teacher)
        students = [
            Student(arm, arm, seed, rates[arm], run.pool(arm))
            for arm in ARMS
            for seed in range(SEEDS)
        ]
        run.population(f"loss_{teacher}", LAYERS[run.args.layers], teacher, students)


def part_labels(run: Run) -> None:
    """E3: students of 50 to all labelled lists, 4 seeds, at the labels' rate."""
    teacher = run.args.teachers[0]
    rate = run.best_rate(teacher)["labels"]
    pool = run.data.parts["labelled"]
    sizes = [n for n in (50, 200, 1000, 5000) if n < len(pool)] + [len(pool)]
    students = [
        Student(f"labels_{n}", "labels", seed, rate, pool[:n])
        for n in sizes
        for seed in range(4)
    ]
    run.population("labels", LAYERS[run.args.layers], teacher, students)


PARTS = {"layers": part_layers, "loss": part_loss, "labels": part_labels}


def main() -> None:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=pathlib.Path, help="BEIR folder with runs/bm25.*")
    add("--minilm", type=pathlib.Path, help="folder of all-MiniLM-L6-v2")
    add("--smollm", type=pathlib.Path, help="folder of SmolLM2-135M-Instruct")
    add("--out", type=pathlib.Path, required=True)
    add("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    add("--teachers", nargs="+", default=["minilm", "cosine"])
    add("--layers", choices=LAYERS, default="4", help="number of the students' layers")
    add("--steps", type=int, default=STEPS)
    add("--teacher-steps", type=int, default=TEACHER_STEPS)
    add("--at-once", type=int, default=64, help="students of one program")
    add("--status", action="store_true", help="say what is finished, and stop")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.status:
        for path in sorted(args.out.glob("*.np[yz]")):
            print(path.name)
        return
    run = Run(args)
    for name in args.parts:
        PARTS[name](run)


if __name__ == "__main__":
    main()
