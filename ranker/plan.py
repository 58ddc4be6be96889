r"""Predicts whether a stage fits chips that you do not have, and what it will cost.

    python -m ranker.plan --config configs/sft_llama2_7b.py --topology v5e:4x4 \
      [--num-slices 2] [--json FILE] [--search] [--config.FIELD=VALUE ...]

The stage's own step is compiled by the TPU compiler (libtpu) on this machine, which
needs no TPU. GPUs (h100:8) are planned with the CPU compiler and a roofline.
docs/plan.md explains what is printed.
"""

import argparse
import dataclasses
import importlib.util
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from ranker import cli, config, storage

_HELP = "Compiles a stage for chips you do not have; prints memory, time and traffic."


def prepare_compiler(topology: str) -> None:
    """Lets libtpu compile where there is no TPU; before jax starts a backend."""
    from ranker.planning import chips

    if chips.parse(topology)[0].gpu:
        os.environ.update(JAX_PLATFORMS="cpu")
        return
    if importlib.util.find_spec("libtpu") is None:
        raise config.ConfigError(
            "plan needs the TPU compiler, libtpu, and no TPU; on Linux x86-64: "
            "pip install 'ranker[tpu]' (in a checkout: pip install -e '.[tpu]')"
        )
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",  # do not ask for the machine's own TPU
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # several plans may run at once
        TPU_STDERR_LOG_LEVEL="3",
        TF_CPP_MIN_LOG_LEVEL="3",
        TPU_ACCELERATOR_TYPE="v5litepod-1",  # not asked for, but missed in a warning
        TPU_WORKER_HOSTNAMES="localhost",
    )


def _number(kind: Any) -> Any:
    """A parser of numbers above 0."""

    def parse(text: str) -> Any:
        value = kind(text.replace(",", ""))
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
        return value

    parse.__name__ = kind.__name__  # argparse names it where no number is found
    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ranker.plan",
        description=_HELP,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="config of a cpt, sft, distill or score stage")
    parser.add_argument("--stage", default="", help="stage of a pipeline config")
    parser.add_argument("--topology", help="chip and shape, e.g. v5e:4x4 or h100:8")
    parser.add_argument("--num-slices", type=int, default=1, help="slices (default 1)")
    parser.add_argument("--teacher", help="score: the config that trains the teacher")
    parser.add_argument(
        "--pairs",
        type=_number(int),
        help="score: number of pairs, for the chip-hours of all of them",
    )
    parser.add_argument(
        "--records",
        type=_number(int),
        help="training by epochs: clicks, lists or triples per epoch",
    )
    parser.add_argument(
        "--text-tokens",
        type=int,
        default=0,
        help="mean tokens of a text (a pair with its prompt); default: a whole row",
    )
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        default=0,
        help="those before the document, if the prompt is computed once per list",
    )
    parser.add_argument(
        "--documents", type=int, default=0, help="per query; default: batch.list_size"
    )
    parser.add_argument("--json", type=pathlib.Path, help="file to write everything to")
    parser.add_argument(
        "--search",
        action="store_true",
        help="try other meshes, batch sizes and remat policies, and rank what fits",
    )
    parser.add_argument(
        "--max-programs", type=int, default=12, help="search: limit of programs"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the flags and plans one stage."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    if known.config is None:
        parser.print_help()
        raise SystemExit(0 if "--help" in rest or "-h" in rest else 2)

    def run() -> None:
        settings = config.load(
            known.config, rest, of=(config.Train, config.Score), stage=known.stage
        )
        teacher = None
        if known.teacher:
            teacher = config.load(known.teacher, [], of=config.Train)
        if known.topology is None:
            raise config.ConfigError(
                "--topology is missing: the chip and the shape of a slice, e.g. "
                "--topology v5e:4x4"
            )
        prepare_compiler(known.topology)
        plan_stage(settings, teacher, known)

    cli.sentences(run, where=known.json)


def plan_stage(
    settings: config.Train | config.Score,
    teacher: config.Train | None,
    known: argparse.Namespace,
) -> None:
    """Prints the plan of one stage, or searches; exits with 1 when nothing fits."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    from ranker.chips import GIB
    from ranker.planning import chips, estimate, search
    from ranker.planning.job import TextLengths, make_job
    from ranker.training.imports import check_imports

    named = [one for one in (settings, teacher) if one is not None]
    for line in check_imports(named, fetch=False):
        print(f"[models] {line}")
    # A program for chips that are not here cannot be read back from a cache.
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    texts = TextLengths(known.text_tokens, known.prompt_tokens, known.documents)
    slices = chips.find_slices(known.topology, known.num_slices)
    if known.search:
        ranked = search.search(
            settings,
            teacher,
            slices,
            pairs=known.pairs or known.records,
            texts=texts,
            most=known.max_programs,
            note=lambda line: print(f"[search] {line}", flush=True),
        )
        plans = [
            {
                "flags": " ".join(one.candidate.flags),
                **estimate.cost_as_dict(one.job, slices, one.estimate),
            }
            for one in ranked
        ]
        for place, one in enumerate(plans, 1):
            print(
                f"{place:>2}. {one['tokens_per_second']:>11,.0f} tokens/s  "
                f"{one['memory']['total'] / GIB:6.2f} GiB  "
                f"{one['bound']:<7}  {one['flags']}"
            )
        _write(known.json, plans)
        fits, alone = bool(plans), False
    else:
        count = known.pairs or known.records
        job = make_job(settings, teacher, slices.devices, count, texts)
        mesh = " x ".join(f"{axis} {size}" for axis, size in job.mesh.shape.items())
        print(f"[plan] compiles {job.kind} for {known.topology}, {mesh}", flush=True)
        found = estimate.step_cost(job, slices)
        if found.memory.fits:
            found = dataclasses.replace(
                found, evaluation=estimate.evaluation(job, slices)
            )
        numbers = estimate.cost_as_dict(job, slices, found)
        print(_text(numbers, slices))
        _write(known.json, numbers)
        fits = found.fits
        alone = found.memory.arguments > found.memory.limit
    if not fits:
        print("\n" + ways_out(settings, slices, alone))
        raise SystemExit(1)


def _write(path: pathlib.Path | None, numbers: Any) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(path, numbers)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _text(n: dict[str, Any], slices: Any) -> str:
    mesh = " x ".join(f"{axis} {size}" for axis, size in n["mesh"].items())
    lines = [
        f"{n['stage']}: {n['parameters']:,} parameters, {n['tokens_per_step']:,} tokens"
        f" a step (padding included)",
        f"{n['chips']} chips: {n['num_slices']} x {n['topology']}, mesh {mesh}; "
        f"compiled in {n['compile_seconds']:.0f} s",
        "",
        *_memory_text(n, slices.chip),
        "",
        "operations of a step, all chips",
        f"  model        {n['model_flops'] / 1e12:>12,.2f}   TFLOP",
        f"  hardware     {n['hardware_flops'] / 1e12:>12,.2f}   TFLOP, what is "
        "recomputed included",
        f"  ratio        {n['flops_ratio']:>12.3f}",
    ]
    if not n["memory"]["fits"]:
        return "\n".join(lines)
    lines += ["", *_time_text(n, slices.chip), ""]
    if slices.chip.gpu:
        lines += [
            "No GPU compiler is here: memory is XLA's for CPU devices, which keeps",
            "some bfloat16 values as float32 and has no GPU kernel, so that a card",
            "needs less. HBM counts parameters and moments once in and once out. Times",
            "are bounds at the data sheet's peaks: good to rank meshes and batches by.",
        ]
    else:
        lines += [
            "Memory is the compiler's own figure. Bounds are at the chips' published",
            "peaks: what overlaps, how well kernels run, reading data, evaluation and",
            "saving can't be known without the chips.",
        ]
    return "\n".join(lines)


def _memory_text(n: dict[str, Any], chip: Any) -> list[str]:
    memory, evaluation = n["memory"], n["evaluation"]
    device = "chip" if chip.devices == 1 else "core (a device; two are a chip)"

    def verdict(fits: bool) -> str:
        return "fits" if fits else "DOES NOT FIT"

    lines = [
        f"memory of a {device}",
        f"  arguments    {_size(memory['arguments']):>12}   parameters, moments, batch",
        f"  temporaries  {_size(memory['temporaries']):>12}   activations, gradients, "
        "gathered weights",
        f"  together     {_size(memory['total']):>12}   of {_size(memory['limit'])} "
        f"that a program may use: {verdict(memory['fits'])}",
    ]
    if evaluation:
        lines.append(
            f"  evaluation   {_size(evaluation['total']):>12}   while dev is measured: "
            f"{verdict(evaluation['fits'])}"
        )
    return lines


def _time_text(n: dict[str, Any], chip: Any) -> list[str]:
    device = "chip" if chip.devices == 1 else "core"
    near, far = ("NVLink", "network") if chip.gpu else ("ICI", "DCN")
    lines = [f"sent by each {device} in a step  {near:>6}       {far:>7}"]
    for kind, moved in sorted(n["collectives"].items()):
        lines.append(
            f"  {kind:<19}{_size(moved['ici_bytes']):>12} "
            f"{_size(moved['dcn_bytes']):>12}   {moved['operations']:,} operations"
        )
    if not n["collectives"]:
        lines.append("  nothing")
    lines += ["", "a step takes at least"]
    for name, seconds in n["terms"].items():
        mark = "  <- the largest" if name == n["bound"] else ""
        shown = {"ICI": near, "DCN": far}.get(name, name)
        lines.append(f"  {shown:<8} {seconds * 1e3:>12,.2f} ms{mark}")
    lines += [
        "",
        f"at that bound: {n['tokens_per_second']:,.0f} tokens/s, "
        f"{n['tokens_per_second'] / n['chips']:,.0f} a chip; model FLOPs utilisation "
        f"{n['model_flops_utilisation']:.0%}",
    ]
    if n["pairs_per_second"]:
        alone = n["pair_tokens_alone"] / n["pair_tokens"]
        lines.append(
            f"  {n['pairs_per_second']:,.1f} pairs/s of {n['pair_tokens']:.1f} tokens "
            "each"
            + (
                f", the prompt computed once a list: {alone:.2f} times as many as "
                f"with it repeated ({n['pair_tokens_alone']:.1f})"
                if alone > 1.005
                else ""
            )
        )
    if n["chip_hours"] is None:
        what = "pairs" if n["stage"] == "score" else "records"
        lines.append(
            f"chip-hours: not known, since the number of {what} is not; give --{what} N"
        )
    else:
        most = ""
        if n["by_epochs"] and not n["text_tokens"]:
            most = ", with texts of full length: --text-tokens says how long they are"
        elif n["stage"] == "score" and not n["text_tokens"]:
            most = ", with one pair a row: --text-tokens says how long they are"
        lines.append(
            f"the whole stage: {n['steps']:,} steps, at least {n['chip_hours']:,.1f} "
            f"chip-hours{most}"
        )
    lines += _expected_text(n["expected"], n["chips"])
    if n["unknown_loops"]:
        lines.append(
            f"{len(n['unknown_loops'])} loops of unknown length are counted once: "
            + ", ".join(n["unknown_loops"][:3])
        )
    return lines


def _expected_text(expected: dict[str, Any] | None, chips: int) -> list[str]:
    if expected is None:
        return ["expected: nobody publishes a utilisation for this chip"]
    hours = expected["chip_hours"]
    return [
        f"expected: {expected['tokens_per_second']:,.0f} tokens/s, "
        f"{expected['tokens_per_second'] / chips:,.0f} a chip, "
        f"{expected['step_seconds'] * 1e3:,.2f} ms a step"
        + ("" if hours is None else f", {hours:,.1f} chip-hours"),
        f"  at {expected['utilisation']:.1%} model FLOPs utilisation "
        f"({expected['source']}: {expected['published']:.1%})",
    ]


def ways_out(settings: config.Train | config.Score, slices: Any, alone: bool) -> str:
    """What a stage that does not fit can change, of that which it has left to change.

    `alone`: parameters and moments are too large without any activation.
    """
    ways = []
    if isinstance(settings, config.Train) and not alone:
        if settings.model.remat != "full":
            ways.append(f"set model.remat to full ({settings.model.remat})")
        ways.append(f"lower batch.size ({settings.batch.size})")
        ways.append(f"raise batch.accumulate ({settings.batch.accumulate})")
    elif isinstance(settings, config.Score) and not alone:
        ways.append(f"lower rows ({settings.rows})")
    devices = len(slices.devices) // slices.count
    split = settings.mesh.fsdp * settings.mesh.tensor
    if split < devices:
        ways.append(f"raise mesh.fsdp x mesh.tensor ({split}) to {devices}")
    ways.append("take a larger slice")
    what = "Parameters and their moments alone do" if alone else "It does"
    return (
        f"{what} not fit {slices.count} x {slices.topology}: {', or '.join(ways)}; "
        "--search tries meshes, batch sizes and remat policies."
    )


if __name__ == "__main__":
    main()
