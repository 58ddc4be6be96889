"""What an export says of readers that would read another model from it."""

import dataclasses

from ranker import config
from ranker.models.families import FAMILIES

MODERN = config.Encoder(
    num_layers=6,
    embed_dim=16,
    num_heads=2,
    mlp_dim=16,
    max_positions=0,
    num_types=0,
    family="modernbert",
    window=4,
    local_layers=(1, 2, 4, 5),
    rope_theta=160000.0,
    local_rope_theta=10000.0,
)


def told(**changes):
    """Fields for older readers, and notes on what they cannot be told."""
    model = dataclasses.replace(MODERN, **changes)
    return FAMILIES[model.family].old(model, {})


def test_layers_off_the_pattern_cannot_be_told():
    fields, notes = told()
    assert fields["global_attn_every_n_layers"] == 3 and not notes
    _, [said] = told(local_layers=(0, 1, 4, 5))
    assert "here layers 2, 3 of 6 do" in said and "transformers 5" in said


def test_the_local_base_of_a_decoder_is_not_read():
    decoder = dict(family="modernbert-decoder", causal=True)
    _, [said] = told(**decoder)
    assert "global_rope_theta 160000 as well" in said and "is 10000;" in said
    fields, notes = told(**decoder, local_rope_theta=160000.0)
    assert fields["local_rope_theta"] == 160000.0 and not notes


def test_families_that_transformers_4_does_not_have():
    _, [said] = told(family="gte", local_layers=(), window=0)
    assert said == "transformers 4 has no gte"
