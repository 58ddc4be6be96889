"""Many students of one shape as one program, each with its own arm, seed and rate.

Parameters, order of the data, dropout, learning rate and the weights of the losses have
a leading axis of students. Students are trained a group at a time; a group's raw scores
on dev and test are one file, so a killed part resumes with the next group.
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from lists import Collection
from sizes import Grid

from ranker import config, sharding
from ranker.batch import Rows
from ranker.losses import distillation, listwise, margins
from ranker.models import build
from ranker.models.huggingface import import_params, open_checkpoint
from ranker.models.params import flat, unflat
from ranker.training.state import make_network

# --- models ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Model:
    """An encoder with a score head, as a function of its parameters."""

    network: Any
    fresh: Callable[[jax.Array], Any]  # key -> parameters, of a checkpoint the head's

    def scores(self, params, tokens, lengths, starts, *, key=None):
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
        place = jnp.arange(tokens.shape[0]) * tokens.shape[1]
        return model(inputs, place[:, None], key=key)[:, 0]

    def vectors(self, params, tokens, lengths):
        """Mean of the token vectors, of length 1 [R, D]."""
        real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
        ids = real.astype(jnp.int32)
        body: Any = nnx.merge(self.network.graphdef, params, nnx.State({})).body
        hidden = body(Rows(tokens, ids, jnp.cumsum(ids, 1) * ids - ids, 0 * ids))
        mean = jnp.sum(hidden * real[..., None], 1) / lengths[:, None]
        return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)

    @property
    def parameters(self) -> int:
        """How many numbers train."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.network.abstract))


def _network(model: Any, vocab_size: int):
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    return make_network(model, vocab_size, "score", mesh)


def from_scratch(settings: config.Encoder, vocab_size: int) -> Model:
    """An encoder whose parameters are all fresh."""

    @jax.jit
    def fresh(key):
        return nnx.state(build.build(settings, vocab_size, "score", key=key), nnx.Param)

    return Model(_network(settings, vocab_size), fresh)


def load(path: pathlib.Path, layers: str, dtype: str) -> Model:
    """A checkpoint with a fresh score head."""
    settings = config.Pretrained(
        path=str(path), keep_layers=layers, fresh_head=True, dtype=dtype
    )
    checkpoint = open_checkpoint(settings)
    network = _network(checkpoint.model, checkpoint.vocab_size)
    taken, _ = import_params(checkpoint, "score", network.abstract, network.shardings)
    whole = from_scratch(checkpoint.model, checkpoint.vocab_size)

    def with_head(key):
        found = {**dict(flat(whole.fresh(key))), **taken}
        return unflat(found, network.abstract)

    return Model(network, with_head)


# --- training -------------------------------------------------------------------------


def _kl(temperature):
    return lambda s, t, y, w: distillation.listwise_kl(
        s, t, where=w, temperature=temperature
    )


def _by_list(t, w):
    return distillation.standardise(t, where=w, data_std=1.0, floor=0.1)


# Every loss that an arm can weigh: (scores, targets, labels, where) -> WeightedSum.
LOSSES: dict[str, Callable] = {
    "softmax": lambda s, t, y, w: listwise.softmax(s, y, where=w),
    "point": lambda s, t, y, w: distillation.point_mse(s, t, where=w),
    "margin": lambda s, t, y, w: distillation.margin_mse(s, t, where=w),
    "margin_top": lambda s, t, y, w: distillation.margin_mse(
        s, t, where=w, pairs=margins.of_top(t, w, top=1)
    ),
    "kl": _kl(1.0),
    "kl_half": _kl(0.5),
    "kl_2": _kl(2.0),
    "kl_4": _kl(4.0),
    "soft": lambda s, t, y, w: distillation.soft_cross_entropy(
        s, jax.nn.sigmoid(t), where=w
    ),
    "point_list": lambda s, t, y, w: distillation.point_mse(s, _by_list(t, w), where=w),
}
# Arms: name -> weight of each loss.
ARMS: dict[str, dict[str, float]] = {
    "labels": {"softmax": 1},
    "point": {"point": 1},
    "margin": {"margin": 1},
    "hybrid": {"point": 1, "margin": 1},
    "margin_top": {"margin_top": 1},
    "hybrid_top": {"point": 1, "margin_top": 1},
    "kl": {"kl": 1},
    "soft": {"soft": 1},
    # of E0's temper
    "kl_half": {"kl_half": 1},
    "kl_2": {"kl_2": 1},
    "kl_4": {"kl_4": 1},
    "point_list": {"point_list": 1},
}


@dataclasses.dataclass(frozen=True)
class Student:
    """One member of a population."""

    name: str
    arm: str
    seed: int
    rate: float
    pool: np.ndarray  # rows that it trains on


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What a population learns: lists, their tokens, a teacher's scores, a network."""

    data: Collection
    bank: dict[str, jax.Array]  # tokens [Q, K, T], lengths and starts [Q, K]
    targets: jax.Array  # [Q, K], standardised
    model: Model
    grid: Grid


def _order(student: Student, steps: int, lists: int) -> np.ndarray:
    """Rows of each step [S, lists]; a function of the seed and the pool alone."""
    draw = np.random.default_rng(student.seed)
    epochs = -(-steps * lists // len(student.pool))
    rows = np.concatenate([draw.permutation(student.pool) for _ in range(epochs)])
    return rows[: steps * lists].reshape(steps, lists)


def _optimiser() -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.999))


@functools.cache
def _make_step(task: Task, used: tuple[str, ...], steps: int):
    """One step of every student; what differs between students is an argument."""
    warmup = max(steps // 10, 1)
    lists, tx = task.grid.lists, _optimiser()

    def loss(params, member, data):
        weights, _, rows, key = member
        bank, targets, labels = data
        at = {name: one[rows].reshape(-1, *one.shape[2:]) for name, one in bank.items()}
        scores = task.model.scores(params, **at, key=key).reshape(lists, -1)
        where = jnp.ones_like(scores, bool)
        parts = [LOSSES[k](scores, targets[rows], labels[rows], where) for k in used]
        return sum(w * part.mean() for w, part in zip(weights, parts, strict=True))

    def update(params, state, member, data):
        value, grads = jax.value_and_grad(loss)(params, member, data)
        updates, state = tx.update(grads, state)
        params = jax.tree.map(lambda p, u: p - member[1] * u, params, updates)
        return params, state, value

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, members, at, data):
        coefficients, rates, keys = members
        rows, number = at
        scale = jnp.minimum(number / warmup, (steps - number) / (steps - warmup))
        drawn = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
        each = (coefficients, rates * scale, rows, drawn)
        return jax.vmap(update, in_axes=(0, 0, 0, None))(params, state, each, data)

    return step


def train(task: Task, students: list[Student], steps: int):
    """Parameters of the trained students, stacked."""
    used = tuple(k for k in LOSSES if any(k in ARMS[s.arm] for s in students))
    members = (
        jnp.float32([[ARMS[s.arm].get(k, 0) for k in used] for s in students]),
        jnp.float32([s.rate for s in students]),
        jnp.stack([jax.random.key(s.seed) for s in students]),
    )
    order = np.stack([_order(s, steps, task.grid.lists) for s in students], axis=1)
    step = _make_step(task, used, steps)
    params = jax.vmap(task.model.fresh)(members[2])
    state = jax.vmap(_optimiser().init)(params)
    data = (task.bank, task.targets, jnp.asarray(task.data.grades))
    start = time.monotonic()
    for number in range(1, steps + 1):
        at = (order[number - 1], number)
        params, state, value = step(params, state, members, at, data)
        if number in (1, 10, steps) or number % 100 == 0:
            if not np.isfinite(np.asarray(value)).all():
                raise FloatingPointError(f"step {number}: losses {np.asarray(value)}")
            print(
                f"  step {number}/{steps}, {time.monotonic() - start:.0f} s, "
                f"mean loss {np.asarray(value).mean():.3f}",
                flush=True,
            )
    return params


@functools.cache
def _make_score(task: Task):
    @jax.jit
    def part(params, chosen, bank):
        at = {k: one[chosen].reshape(-1, *one.shape[2:]) for k, one in bank.items()}
        return jax.vmap(lambda p: task.model.scores(p, **at))(params)

    return part


def score(task: Task, params, rows: np.ndarray, most: int = 50) -> np.ndarray:
    """Scores [P, len(rows), K] of every student."""
    part, parts, lists = _make_score(task), [], min(most, len(rows))
    for first in range(0, len(rows), lists):
        chosen = rows[first : first + lists]
        found = np.asarray(part(params, np.resize(chosen, lists), task.bank))
        parts.append(found.reshape(found.shape[0], lists, -1)[:, : len(chosen)])
    return np.concatenate(parts, axis=1)


# --- files ----------------------------------------------------------------------------


def groups(students: list[Student], at_once: int) -> list[list[Student]]:
    """Students of one file each, in order."""
    return [students[i : i + at_once] for i in range(0, len(students), at_once)]


def run(
    folder: pathlib.Path,
    task: Task,
    students: list[Student],
    *,
    splits: tuple[str, ...] = ("dev", "test"),
    steps: int = 0,
) -> None:
    """Trains what is missing of a population, and writes FOLDER/000.npz and so on.

    Args:
      folder: of the part.
      task: what they learn.
      students: all of them, in an order that never changes.
      splits: that are scored.
      steps: in place of the grid's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, group in enumerate(groups(students, task.grid.at_once)):
        path = folder / f"{number:03d}.npz"
        if path.exists():
            continue
        names = ", ".join(f"{s.name} {s.seed}" for s in group[:3])
        print(f"{folder.name} {number:03d}: {names} ...", flush=True)
        start = time.monotonic()
        params = train(task, group, steps or task.grid.steps)
        trained = time.monotonic() - start
        found = {s: score(task, params, task.data.parts[s]) for s in splits}
        aside = folder / f".{number:03d}.npz"
        np.savez(
            aside,
            **found,
            members=json.dumps(
                [[s.name, s.arm, s.seed, s.rate, len(s.pool)] for s in group]
            ),
            seconds=time.monotonic() - start,
            trained=trained,
            parameters=task.model.parameters,
        )
        aside.rename(path)
        print(f"  {time.monotonic() - start:.0f} s", flush=True)
