"""The step of a stage as the run compiles it, for devices that are not here."""

import dataclasses
import glob
import math
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from ranker import config, sharding
from ranker.batch import PackedBatch
from ranker.data.packing import Layout, empty_batch
from ranker.data.pairs import can_share, share
from ranker.data.pipeline import make_layout
from ranker.data.triples import Triples
from ranker.losses.reduction import WeightedSum
from ranker.models.flops import model_flops
from ranker.models.huggingface import open_checkpoint
from ranker.planning.known import KNOWN
from ranker.training.objectives import Objective, make_objective
from ranker.training.optim import make_optimizer
from ranker.training.scorer import make_score
from ranker.training.state import Network, abstract_state, make_network, placed
from ranker.training.step import make_step
from ranker.training.trained import KINDS


@dataclass(frozen=True)
class TextLengths:
    """How long the texts are that a stage will read, as far as it is known."""

    tokens: int = 0  # a pair, with its prompt; 0: as many as a row holds
    prompt: int = 0  # of them, before the document, the same for a query's documents
    documents: int = 0  # a query; 0: as many as a list of the config

    def __post_init__(self):
        for flag, value in (
            ("--text-tokens", self.tokens),
            ("--prompt-tokens", self.prompt),
            ("--documents", self.documents),
        ):
            if value < 0:
                raise config.ConfigError(f"{flag} must be 1 or more, found {value}")
        if self.prompt and self.prompt >= self.tokens:
            raise config.ConfigError(
                f"--prompt-tokens {self.prompt} must be below --text-tokens "
                f"({self.tokens}), the tokens of a whole pair with its prompt"
            )

    def a_pair(self, layout: Layout, documents: int) -> float:
        """Tokens that a pair takes, its share of a shared prompt among them."""
        if not self.tokens:
            return layout.length
        if not (layout.shared and self.prompt):
            return min(self.tokens, layout.length)
        own = self.tokens - self.prompt
        documents = self.documents or documents
        return own + self.prompt / max(
            1, min(documents, (layout.length - self.prompt) // own)
        )


@dataclass(frozen=True)
class Workload:
    """A function, what it is called with, and what a call does."""

    kind: str  # cpt, sft, distill or score
    function: Any  # jitted
    arguments: tuple[Any, ...]  # trees of jax.ShapeDtypeStruct with shardings
    mesh: Mesh
    parameters: int  # of the model
    tokens: int  # a step, padding included
    flops: float  # that the model needs, a step, on all devices
    steps: int | None  # of the whole stage; None: not known
    by_epochs: bool = False  # the steps are those of epochs
    decoder: bool = False  # else an encoder
    text: int = 0  # tokens a text, for what attention takes; 0: those of a row
    # Tokens that a pair takes, and would take were no prompt shared; 0: none is scored.
    a_pair: tuple[float, float] = (0, 0)
    # The function that scores dev, and its arguments; None: the stage has none.
    evaluation: tuple[Any, tuple[Any, ...]] | None = None

    @property
    def argument_bytes(self) -> float:
        """What the arguments take on one device."""
        return bytes_of(self.arguments)


def bytes_of(arguments: Any) -> float:
    """What a tree of shapes with shardings takes on one device."""
    return sum(
        jax.dtypes.itemsize_bits(leaf.dtype)
        // 8
        * _size(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(arguments)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def _size(shape: Sequence[int]) -> int:
    size = 1
    for one in shape:
        size *= one
    return size


def find_model(
    settings: config.Train,
) -> tuple[config.Decoder | config.Encoder, int]:
    """The stage's network and the rows of its embeddings.

    Raises:
      ConfigError: for a checkpoint that is neither here nor known.
      ModelError: for one that is here and cannot be read.
    """
    model = settings.model
    if not isinstance(model, config.Pretrained):
        role = role_of(settings)
        return model, settings.text.of(role, "vocab_size")
    if pathlib.Path(model.path).is_dir():
        checkpoint = open_checkpoint(model)
        return checkpoint.model, checkpoint.vocab_size
    if model.path not in KNOWN:
        raise config.ConfigError(
            f"model.path {model.path}: no such folder, and not among the checkpoints "
            f"whose sizes plan knows ({', '.join(KNOWN)}); download it and name its "
            "folder, or describe the network with config.Decoder or config.Encoder"
        )
    network, vocab_size = KNOWN[model.path]
    count = len(model.kept(network.num_layers))
    changes: dict[str, Any] = dict(
        num_layers=count,
        dtype=model.dtype,
        remat=model.remat,
        reduce_dtype=model.reduce_dtype,
    )
    if model.dropout >= 0 and isinstance(network, config.Encoder):
        changes["dropout"] = model.dropout
    if isinstance(network, config.Encoder):
        changes["attention_dropout"] = model.attention_dropout
    return dataclasses.replace(network, **changes), vocab_size


def role_of(settings: config.Train) -> config.Role:
    """Whose tokenizer and length the stage reads with."""
    if settings.role != "auto":
        return settings.role
    model = settings.model
    if isinstance(model, config.Pretrained):
        model = find_model(dataclasses.replace(settings, role="teacher"))[0]
    return "teacher" if isinstance(model, config.Decoder) else "student"


def make_job(
    settings: config.Train | config.Score,
    teacher: config.Train | None,
    devices: Sequence[Any],
    pairs: int | None = None,
    texts: TextLengths = TextLengths(),  # noqa: B008  it is frozen
) -> Workload:
    """The stage's step on a mesh over `devices`.

    Args:
      settings: of the stage.
      teacher: for scoring: the stage that trains the model that scores.
      devices: of all slices.
      pairs: for scoring: how many there are; None: as the synthetic collection has.
        For training by epochs: its records (clicks, lists, triples).
      texts: how long they are.

    Raises:
      ConfigError: when the mesh, the batch or the model do not go together.
      ModelError: when the checkpoint cannot be read.
    """
    mesh = sharding.make_mesh(settings.mesh, devices)
    if isinstance(settings, config.Train):
        return _train(settings, mesh, (pairs, texts))
    if teacher is None:
        raise config.ConfigError(
            f"a score stage says where its teacher is ({settings.teacher!r}) and not "
            "what it is; name the config that trains it: --teacher configs/sft.py"
        )
    return _score(settings, teacher, mesh, (pairs, texts))


def _steps(
    settings: config.Train, records: int | None, text: float, tokens: int
) -> int | None:
    """Of the stage, as far as is known.

    Args:
      settings: of the stage.
      records: clicks, lists or triples; None: those of files that are here.
      text: tokens of one, on average.
      tokens: of a step.
    """
    loop, objective = settings.loop, settings.objective
    if not loop.by_epochs:
        return loop.steps
    if records is None and isinstance(objective, config.Distillation):
        if glob.glob(objective.triples):
            records = len(Triples(objective.triples))
    if records is None:
        return None
    language = isinstance(objective, config.Language)
    texts = records * (1 if language else settings.batch.list_size)
    return math.ceil(loop.epochs * texts * text / tokens)


def _batch(mesh: Mesh, layout: Layout, *, micro: int) -> PackedBatch:
    """Shapes of a whole batch; a leading dimension of micro-batches where above 0."""
    shards = sharding.num_shards(mesh)
    where = sharding.batch_sharding(mesh, leading=int(micro > 0))

    def whole(leaf: Any) -> jax.ShapeDtypeStruct:
        shape = (leaf.shape[0] * shards, *leaf.shape[1:])
        shape = (micro, *shape) if micro else shape
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=where)

    return jax.tree.map(whole, empty_batch(layout, 0))


def _layout(settings: config.Train, shards: int) -> Layout:
    """Rows of one data shard, before what a list's documents share is laid once."""
    language = isinstance(settings.objective, config.Language)
    role = role_of(settings)
    layout = make_layout(
        settings.batch,
        size=0 if language else settings.batch.list_size,
        length=settings.text.of(role, "length"),
        shards=shards,
        passages=1 if language else settings.text.passages(role).most,
    )
    return dataclasses.replace(layout, impressions=bool(settings.click_lists))


def _train(
    settings: config.Train, mesh: Mesh, amount: tuple[int | None, TextLengths]
) -> Workload:
    records, texts = amount
    model, vocab_size = find_model(settings)
    shards = sharding.num_shards(mesh)
    passages = settings.text.passages(role_of(settings))
    objective = make_objective(settings.objective, groups=shards, passages=passages)
    network = make_network(
        model,
        vocab_size,
        objective.head,
        mesh,
        settings.lora,
        position_bias=objective.position_bias,
    )
    language = isinstance(settings.objective, config.Language)
    layout = _layout(settings, shards)
    rows = settings.batch.accumulate * shards * layout.rows
    length, plain = layout.length, layout
    if not language and _shares(settings, model):
        layout = share(layout)
    each = _each(texts, layout, plain, settings.batch.list_size)
    text = min(texts.tokens or length, length) if language else each[0]
    steps = _steps(settings, records, text, rows * length)
    # Rates are numbers of the program: how many steps there are changes no cost.
    tx = make_optimizer(settings.optim, steps or 1, network.abstract)
    state = abstract_state(network, tx)
    batch = _batch(mesh, layout, micro=settings.batch.accumulate)
    arguments: tuple[Any, ...] = (state, batch)
    if settings.lora.rank:
        arguments += (placed(network.frozen, network.frozen_shardings),)
    everything = jax.tree.leaves((network.abstract, network.frozen))
    return Workload(
        kind=KINDS[type(settings.objective)],
        function=make_step(network, objective, tx, state),
        arguments=arguments,
        mesh=mesh,
        parameters=sum(_size(leaf.shape) for leaf in everything),
        tokens=rows * length,
        flops=model_flops(
            model,
            vocab_size=vocab_size,
            rows=rows,
            length=length,
            scored=rows,
            language=language,
            train=True,
            text=texts.tokens,
        ),
        steps=steps,
        by_epochs=settings.loop.by_epochs,
        decoder=isinstance(model, config.Decoder),
        text=texts.tokens,
        a_pair=(0, 0) if language else each,
        evaluation=_evaluation(network, objective, mesh, layout, language),
    )


def _evaluation(
    network: Network, objective: Objective, mesh: Mesh, layout: Layout, language: bool
) -> tuple[Any, tuple[Any, ...]]:
    """What measures dev, on as many rows as a micro-batch of training has."""
    params = placed(network.abstract, network.shardings)
    params = nnx.merge_state(params, placed(network.frozen, network.frozen_shardings))
    if not language:
        one = dataclasses.replace(layout, size=1, slots=0, impressions=False)
        one = dataclasses.replace(one, passages=1)
        return make_score(network), (params, _batch(mesh, one, micro=0))

    def loss(params: Any, batch: PackedBatch) -> WeightedSum:
        model = nnx.merge(network.graphdef, params)
        return objective.parts(model, batch, None)["language"]

    return jax.jit(loss), (params, _batch(mesh, layout, micro=0))


def _shares(settings: config.Train, model: config.Decoder | config.Encoder) -> bool:
    """Whether rows hold trees: prompts that a list's documents share."""
    role = role_of(settings)
    text = settings.text
    template, length = text.of(role, "template"), text.of(role, "length")
    return can_share(model, template, length)[0]


def _each(
    texts: TextLengths, layout: Layout, plain: Layout, documents: int
) -> tuple[float, float]:
    """Tokens that a pair takes in the layout that is used, and in the plain one."""
    alone = texts.a_pair(plain, documents)
    return (texts.a_pair(layout, documents) if texts.tokens else alone), alone


def _score(
    settings: config.Score,
    teacher: config.Train,
    mesh: Mesh,
    known: tuple[int | None, TextLengths],
) -> Workload:
    pairs, texts = known
    model, vocab_size = find_model(teacher)
    shards = sharding.num_shards(mesh)
    network = make_network(model, vocab_size, "score", mesh)
    rows = -(-settings.rows // shards) * shards
    length = settings.text.of(role_of(teacher), "length")
    tokens = rows * length
    layout = plain = Layout(rows=rows // shards, length=length, size=1)
    if _shares(teacher, model):
        layout = share(layout)
    if pairs is None and not settings.data.path:
        world = settings.data.world
        queries = {"train": world.labelled_queries}
        queries["unlabelled"] = world.unlabelled_queries
        pairs = world.candidates * sum(queries[split] for split in settings.splits)
    each = _each(texts, layout, plain, teacher.batch.list_size)
    return Workload(
        kind="score",
        function=make_score(network),
        arguments=(
            placed(network.scoring, network.shardings),
            _batch(mesh, layout, micro=0),
        ),
        mesh=mesh,
        parameters=sum(_size(x.shape) for x in jax.tree.leaves(network.abstract)),
        tokens=tokens,
        flops=model_flops(
            model,
            vocab_size=vocab_size,
            rows=rows,
            length=length,
            scored=rows,
            language=False,
            train=False,
            text=texts.tokens,
        ),
        steps=None if pairs is None else math.ceil(pairs * each[0] / tokens),
        decoder=isinstance(model, config.Decoder),
        text=texts.tokens,
        a_pair=each,
    )
