"""Models of others, read by this package, for several tests."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from ranker import config
from ranker.batch import Rows
from ranker.models import build
from ranker.models.huggingface import import_params, open_checkpoint
from ranker.sharding import make_mesh
from ranker.training.state import make_network


def with_params(settings, params, head, vocab_size):
    """A model of ours with the parameters of these paths."""
    model = build.build(settings, vocab_size, head, key=jax.random.key(0))
    state = nnx.state(model, nnx.Param)
    for path, leaf in nnx.to_flat_state(state):
        leaf.set_value(jnp.asarray(params[".".join(map(str, path))]))
    nnx.update(model, state)
    return model


def load(folder, head, **fields):
    """Config, parameters by path and notes of a folder, imported onto a mesh."""
    checkpoint = open_checkpoint(config.Pretrained(path=str(folder), **fields))
    tensor = 1 if checkpoint.vocab_size % 2 or checkpoint.model.num_heads % 2 else 2
    mesh = make_mesh(config.Mesh(fsdp=2, tensor=tensor))  # widths, heads are split
    network = make_network(checkpoint.model, checkpoint.vocab_size, head, mesh)
    params, notes = import_params(checkpoint, head, network.abstract, network.shardings)
    params = {path: np.asarray(value) for path, value in params.items()}
    return checkpoint, params, notes


def imported(folder, head, **fields):
    """A model of ours from a folder, and its config."""
    checkpoint, params, _ = load(folder, head, **fields)
    model = with_params(checkpoint.model, params, head, checkpoint.vocab_size)
    return model, checkpoint.model


def batch_of(lengths, vocab_size, T=12):
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, vocab_size, (len(lengths), T))
    place = np.arange(T)
    real = place[None] < np.array(lengths)[:, None]
    return (
        tokens * real,
        real.astype(int),
        (place[None] * real),
        (place >= 4) * real.astype(int),
    )


def as_jax(arrays):
    return Rows(*(jnp.asarray(np.asarray(x), jnp.int32) for x in arrays))


BERT = dict(
    vocab_size=98,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def randomised(model):
    """Random norms and biases too: fresh ones are ones and zeros, and prove nothing."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()
