"""Eight CPU devices, or what RANKER_TEST_PLATFORM names, and strict ranks."""

import ctypes
import os
import pathlib

import hypothesis
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

# A busy machine draws and runs slowly, which is no fault of what is tested.
hypothesis.settings.register_profile(
    "any speed",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any speed")


MEMORY = pathlib.Path("/proc/self/statm")  # Linux's
HELD = 3 << 30  # bytes


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Forgets what was compiled, between files, where it has come to gigabytes."""
    yield
    if not MEMORY.is_file():
        return
    pages = int(MEMORY.read_text().split()[1])
    if pages * os.sysconf("SC_PAGE_SIZE") > HELD:
        jax.clear_caches()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)  # the C library would keep the memory


def pytest_addoption(parser):
    """Adds `--all`, which runs the tests that are marked slow as well."""
    parser.addoption("--all", action="store_true", help="run slow tests as well")


# Folders, files and tests that take more than about five seconds: they compile a lot,
# try many inputs or start processes.
SLOW = (
    "tests/chaos/",
    "tests/data/test_bm25.py::test_near_a_published_index_on_real_queries",
    "tests/data/test_clicks.py::test_sql_makes_what_the_rules_say",
    "tests/data/test_collections.py::test_real_folders",
    "tests/data/test_hostile.py::test_a_long_line_costs_a_bounded_multiple_of_itself",
    "tests/data/test_hostile.py::test_damaged_files",
    "tests/data/test_hostile.py::test_damaged_gzip_and_noise",
    "tests/data/test_hostile.py::test_damaged_scores",
    "tests/data/test_hostile.py::test_scores_that_say_anything",
    "tests/data/test_hostile.py::test_wrong_values",
    "tests/data/test_layouts.py::test_random_folders_are_what_a_naive_reading_finds",
    "tests/data/test_packing.py::test_rows_of_real_texts_are_at_least_92_percent_real",
    "tests/data/test_text.py::test_a_trained_wordpiece_is_the_same_in_every_process",
    "tests/launch/",
    "tests/losses/test_losses.py::test_any_batch_dimensions",
    "tests/losses/test_losses.py::test_bfloat16_is_computed_in_float32",
    "tests/losses/test_losses.py::test_whatever_comes_is_finite_and_equals_the_formula",
    "tests/losses/test_sources.py::test_equals_sentence_transformers",
    "tests/losses/test_weights.py::test_a_list_of_weight_two_is_as_good_as_two",
    "tests/losses/test_weights.py::test_weights_of_another_shape_are_refused",
    "tests/metrics/test_ties.py::test_bounds_are_the_extremes_of_every_order",
    "tests/models/test_adapters.py::test_an_adapted_matrix_acts_as_the_sum",
    "tests/models/test_adapters.py::test_dropout_is_of_what_adapters_read_alone",
    "tests/models/test_adapters.py::test_eight_devices_train_adapters_as_one_does",
    "tests/models/test_adapters.py::test_fresh_adapters_add_nothing",
    "tests/models/test_adapters.py::test_gradients_are_those_of_all_weights_projected",
    "tests/models/test_attention.py::test_blocks_write_over_what_they_have_read",
    "tests/models/test_attention.py::test_kernels_equal_the_reference_forward_and_backward",
    "tests/models/test_heads.py::test_poolings_are_of_the_documents_own_tokens",
    "tests/models/test_hostile_folders.py",
    "tests/models/test_models.py",
    "tests/online/test_clickmodels.py::test_planted_parameters_come_back_within_three_standard_errors",
    "tests/online/test_commands.py::test_interleave_finds_the_better_system",
    "tests/online/test_commands.py::test_clickmodel_finds_how_users_look",
    "tests/online/test_commands.py::test_counterfactual_values_another_ranking",
    "tests/online/test_commands.py::test_impressions_are_lists_with_labels",
    "tests/online/test_commands.py::test_clicks_are_those_of_the_log",
    "tests/online/test_commands.py::test_counterfactual_says_what_it_cannot_use",
    "tests/parity/",
    "tests/planning/test_plan.py",
    "tests/serving/test_checking.py",
    "tests/serving/test_latency.py::test_every_runtime_and_shape_is_timed",
    "tests/serving/test_precision.py",
    "tests/serving/test_runtimes.py",
    "tests/serving/test_serve_process.py",
    "tests/serving/test_served.py::test_a_precision_is_tried_on_dev",
    "tests/test_bad_input.py::test_what_is_odd_but_sound_is_prepared",
    "tests/test_config.py::test_every_config_has_a_smoke_variant_and_a_command",
    "tests/test_config.py::test_help_says_of_every_field_what_it_is",
    "tests/test_given_scores.py::test_scores_are_the_same_from_every_kind_of_file",
    "tests/test_processes.py",
    "tests/test_reduction.py",
    "tests/test_sharding.py",
    "tests/test_stages.py",
    "tests/test_uneven.py",
    "tests/training/test_adapted_stages.py",
    "tests/training/test_epochs.py",
    "tests/training/test_language.py::test_bfloat16_computes_and_float32_learns",
    "tests/training/test_language.py::test_chunks_change_nothing",
    "tests/training/test_objectives.py::test_a_named_loss_has_a_gradient_and_a_weight_of_the_batch_alone",
    "tests/training/test_optim.py::test_gradients_are_taken_at_the_weights_not_at_their_average",
    "tests/training/test_optim.py::test_masters_are_float32_whatever_computes",
    "tests/training/test_optim.py::test_muon_turns_the_matrices_of_layers_orthogonal",
    "tests/training/test_optim.py::test_rates_rise_then_never_rise_again",
    "tests/training/test_optim.py::test_the_abstract_state_is_the_real_one",
    "tests/training/test_packed.py::test_a_run_is_compiled_once",
    "tests/training/test_packed.py::test_lists_are_scored_in_order",
    "tests/training/test_score.py",
    "tests/training/test_shared_prefix.py",
    "tests/training/test_step.py::test_accumulation_changes_nothing",
    "tests/training/test_step.py::test_every_rank_loss_learns",
    "tests/training/test_sweep.py::test_a_sweep_ends_with_one_table_whatever_diverges",
    "tests/training/test_sweep.py::test_every_value_is_checked_before_the_first_run",
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
