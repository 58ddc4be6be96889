"""Eight CPU devices, or what RANKER_TEST_PLATFORM names, and strict ranks."""

import os

import jax
import pytest

# They run in environments of their own, as what needs Apache Beam; see .ci/run.
collect_ignore = ["tests/environments", "ranker/data/beam.py"]

PLATFORM = os.environ.get("RANKER_TEST_PLATFORM", "cpu")

jax.config.update("jax_platforms", PLATFORM)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
if PLATFORM == "cpu":  # tests compile much and compute little
    jax.config.update("jax_disable_most_optimizations", True)


def pytest_addoption(parser):
    """Adds `--all`, which runs the tests that are marked slow as well."""
    parser.addoption("--all", action="store_true", help="run slow tests as well")


# Folders and files whose every test compiles a lot, or starts processes.
SLOW = (
    "tests/chaos/",
    "tests/launch/",
    "tests/models/test_hostile_folders.py",
    "tests/models/test_models.py",
    "tests/parity/",
    "tests/planning/test_plan.py",
    "tests/serving/test_checking.py",
    "tests/serving/test_precision.py",
    "tests/serving/test_runtimes.py",
    "tests/serving/test_serve_process.py",
    "tests/test_processes.py",
    "tests/test_sharding.py",
    "tests/test_stages.py",
    "tests/training/test_adapted_stages.py",
    "tests/training/test_score.py",
    "tests/training/test_shared_prefix.py",
)


# Files that take minutes begin first (with --no-loadscope-reorder): no core then waits
# for the last one.
LONGEST = ("tests/test_processes.py", "tests/chaos/", "tests/test_stages.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Marks slow tests, and leaves them out unless `--all` or `-m` asks for them."""
    items.sort(key=lambda one: not one.nodeid.startswith(LONGEST))
    for one in items:
        if one.nodeid.startswith(SLOW):
            one.add_marker(pytest.mark.slow)
    if config.getoption("--all") or config.getoption("-m"):
        return
    chosen = [one for one in items if not one.get_closest_marker("slow")]
    left_out = [one for one in items if one.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = chosen
