"""Where a training step of a BERT student spends its time, on one CPU core.

    python benchmarks/profile_student.py --model MINILM

Runs a step of 16 rows, as many as a micro-batch of `train_student.py` has, under jax's
profiler on one core of a Linux machine, with an event for each operation that XLA runs,
and adds up by kind what each took by itself. A step without the profiler gives what the
kernel takes to hand out fresh memory. The last line is one JSON object.
"""

import collections
import json
import os
import pathlib
import re
import resource
import tempfile
from functools import partial

DUMP = tempfile.TemporaryDirectory()
# Both must stand before jax starts: one core, and events with the compiled program.
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.environ["XLA_FLAGS"] = (
    f"--xla_dump_to={DUMP.name} --xla_dump_hlo_as_text "
    "--xla_cpu_enable_xprof_traceme=true " + os.environ.get("XLA_FLAGS", "")
)

import jax  # noqa: E402
from side_by_side import Ours, make_parser, random_bert, set_up  # noqa: E402

from ranker import config  # noqa: E402

_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\S+) ")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


def instructions(folder: pathlib.Path) -> dict[str, tuple[str, str]]:
    """Shape and traced name of each instruction of the compiled step."""
    (file,) = folder.glob("*jit_step*cpu_after_optimizations.txt")
    found = {}
    for line in file.read_text().splitlines():
        if one := _INSTRUCTION.match(line):
            name = _OP_NAME.search(line)
            found[one[1]] = one[2], name[1] if name else ""
    return found


def own_times(trace: pathlib.Path) -> collections.Counter[str]:
    """Nanoseconds of each instruction, those of the ones within it taken out."""
    (file,) = trace.rglob("*.xplane.pb")
    times: collections.Counter[str] = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            if "XLAEigen" not in line.name and "PjRt" not in line.name:
                continue
            events = [(e.start_ns, e.duration_ns, e.name) for e in line.events]
            open_: list[tuple[float, str]] = []  # the ends and names of those around
            for start, duration, name in sorted(events, key=lambda e: (e[0], -e[1])):
                while open_ and open_[-1][0] <= start:
                    open_.pop()
                if open_:
                    times[open_[-1][1]] -= duration
                times[name] += duration
                open_.append((start + duration, name))
    return times


def kind(name: str, shape: str, traced: str, mlp_dim: int, vocab_size: int) -> str:
    """What an instruction is part of."""
    product = name.startswith(("dot", "ynn"))
    if "cond/branch" in traced:
        return f"attention by blocks: {'products' if product else 'all else'}"
    if product and ("dot_general" in traced or traced.endswith("transpose")):
        return "products with weights"
    if "erf" in traced or str(mlp_dim) in shape:
        return "GELU and its gradient"
    if "scatter" in traced or "take" in traced or str(vocab_size) in shape:
        return "embeddings and their part of AdamW"
    if "dynamic" in name:
        return "copies of what the backward pass needs"
    return "norms, dropout, biases, transposes, AdamW"


def main() -> None:
    """Traces a step and prints the table."""
    parser = make_parser(
        __doc__,
        size=(2, "batch.size: lists of full length a step"),
        layers=(6, "of random weights"),
        embed=(384, "width of random weights"),
    )
    args = parser.parse_args()
    setting = set_up(args, "student", partial(random_bert, args))
    ours = Ours(setting)
    run = ours.train_steps(
        config.Rank(loss=("sigmoid_cross_entropy",)),
        config.Batch(size=args.size, list_size=8),
        2e-5,
    )
    run(2)
    before = resource.getrusage(resource.RUSAGE_SELF)
    run(1)
    after = resource.getrusage(resource.RUSAGE_SELF)
    faults = after.ru_minflt - before.ru_minflt
    kernel = after.ru_stime - before.ru_stime
    vocab = ours.network.abstract["body"]["embedding"].shape[0]
    trace = pathlib.Path(DUMP.name) / "trace"
    with jax.profiler.trace(str(trace)):
        _, seconds = run(1)
    known = instructions(pathlib.Path(DUMP.name))
    kinds: collections.Counter[str] = collections.Counter()
    for name, time in own_times(trace).items():
        name = name.removeprefix("end: ")
        if name in known:
            sizes = ours.model.mlp_dim, vocab
            kinds[kind(name, *known[name], *sizes)] += time
    total = sum(kinds.values())
    print(f"a step on one core takes {seconds:.1f} s")
    print(f"{faults:,} page faults; {kernel:.1f} s of processor time in the kernel")
    for name, time in kinds.most_common():
        print(f"{time / total:4.0%}  {name}")
    shares = {name: time / total for name, time in kinds.items()}
    found = {"seconds": seconds, "page_faults": faults, "kernel_seconds": kernel}
    print(json.dumps({**found, "traced": total / 1e9, "shares": shares}))


if __name__ == "__main__":
    main()
