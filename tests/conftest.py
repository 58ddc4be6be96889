"""Eight CPU devices, or what RANKER_TEST_PLATFORM names, and strict ranks."""

import os

import jax

PLATFORM = os.environ.get("RANKER_TEST_PLATFORM", "cpu")

jax.config.update("jax_platforms", PLATFORM)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
if PLATFORM == "cpu":  # tests compile much and compute little
    jax.config.update("jax_disable_most_optimizations", True)
