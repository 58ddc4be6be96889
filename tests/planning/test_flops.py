import jax
import jax.numpy as jnp
import pytest

from ranker import config
from ranker.models.flops import model_flops
from ranker.planning.flops import program_flops


def test_loops_and_branches_count_as_they_run():
    x, w = jnp.ones((4, 8)), jnp.ones((6, 8, 8))

    @jax.checkpoint
    def layer(x, w):
        return jax.lax.cond(jnp.sum(x) > 0, lambda: jnp.tanh(x @ w), lambda: x)

    def forward(w):
        return jnp.sum(jax.lax.scan(lambda x, w: (layer(x, w), None), x, w)[0])

    once = 6 * 2 * 4 * 8 * 8
    assert program_flops(jax.make_jaxpr(forward)(w)) == once
    # Forward, again for the backward pass, and two products there.
    assert program_flops(jax.make_jaxpr(jax.grad(forward))(w)) == 4 * once


def test_what_nothing_reads_does_not_count():
    x, w = jnp.ones((4, 8)), jnp.ones((6, 8, 8))

    def forward(x, w):
        return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0])

    def slope(x):  # that of w is frozen
        return jax.grad(forward, argnums=(0, 1))(x, w)[0]

    assert program_flops(jax.make_jaxpr(slope)(x)) == 2 * 6 * 2 * 4 * 8 * 8


SIZES = dict(vocab_size=100, rows=2, length=16, scored=2)


@pytest.mark.parametrize("window", [0, 4])
def test_a_decoder_by_hand(window):
    model = config.Decoder(
        num_layers=2,
        embed_dim=8,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        mlp_dim=32,
        window=window,
        local_layers=(0,) if window else (),
    )
    tokens, inputs, outputs = 32, 8 * 16 + 2 * 8 * 8, 8 * 16 + 3 * 8 * 32
    seen = 8 + (window or 8)  # keys a query, over both layers
    attention = 4 * tokens * seen * 16
    found = model_flops(model, **SIZES, language=False, train=False)
    # The last layer ends with the 2 tokens that are scored.
    assert found == 2 * (2 * tokens * inputs + (tokens + 2) * outputs) + attention
    found = model_flops(model, **SIZES, language=True, train=True)
    weights = 2 * tokens * 2 * (inputs + outputs)
    assert found == 3 * (weights + attention + 2 * tokens * 8 * 100)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_an_encoder_sees_all_its_tokens(pooling):
    model = config.Encoder(
        num_layers=1, embed_dim=8, num_heads=2, mlp_dim=32, pooling=pooling
    )
    found = model_flops(model, **SIZES, language=False, train=False)
    inputs, outputs = 3 * 8 * 8, 8 * 8 + 2 * 8 * 32
    weights = 2 * (32 * inputs + (32 if pooling == "mean" else 2) * outputs)
    assert found == weights + 4 * 32 * 16 * 8 + 2 * 2 * 8 * 8
