"""Eight CPU devices, or what RANKER_TEST_PLATFORM names, and strict ranks."""

import os

import jax

# They run in environments of their own; see .ci/run.
collect_ignore = ["tests/environments"]

PLATFORM = os.environ.get("RANKER_TEST_PLATFORM", "cpu")

jax.config.update("jax_platforms", PLATFORM)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
if PLATFORM == "cpu":  # tests compile much and compute little
    jax.config.update("jax_disable_most_optimizations", True)


def pytest_addoption(parser):
    """Adds `--all`, which runs the tests that are marked slow as well."""
    parser.addoption("--all", action="store_true", help="run slow tests as well")


def pytest_collection_modifyitems(config, items):
    """Leaves slow tests out, unless all are asked for or `-m` chooses."""
    if config.getoption("--all") or config.getoption("-m"):
        return
    chosen = [one for one in items if not one.get_closest_marker("slow")]
    left_out = [one for one in items if one.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = chosen
