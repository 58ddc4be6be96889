"""A stage's step compiled for chips that are not here, and what follows from it."""

import collections
import dataclasses
import re
import time
from dataclasses import dataclass
from typing import Any

import jax

from ranker.planning import chips, flops, hlo
from ranker.planning.job import Workload, bytes_of

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Memory:
    """HBM of one device, in bytes, as the compiler has laid it out."""

    arguments: float  # parameters, moments, batch
    temporaries: float  # activations, gradients, gathered weights
    total: float
    limit: float  # that a program may use
    fits: bool


@dataclass(frozen=True)
class StepCost:
    """What one step takes. Bytes and seconds are of one device, FLOPs of all."""

    memory: Memory
    compile_seconds: float
    model_flops: float
    hardware_flops: float
    hbm_bytes: float | None  # None, as all below: it does not fit
    collectives: tuple[hlo.Collective, ...]
    unknown_loops: tuple[str, ...]
    terms: dict[str, float]  # seconds of each bound: compute, HBM, ICI, DCN
    evaluation: Memory | None = None  # while dev is scored; None: not compiled

    @property
    def seconds(self) -> float:
        """The roofline's step time: the largest term, all others hidden behind it."""
        return max(self.terms.values())

    @property
    def bound(self) -> str:
        """The largest term."""
        return max(self.terms, key=self.terms.__getitem__)

    @property
    def fits(self) -> bool:
        """Whether training fits, and evaluation where it was compiled."""
        return self.memory.fits and (self.evaluation is None or self.evaluation.fits)


def step_cost(job: Workload, slices: chips.Slices) -> StepCost:
    """Compiles the job's step, and reads off what it needs.

    Raises:
      ConfigError: when the kernels cannot take the shapes.
    """
    started = time.monotonic()
    limit = slices.chip.usable
    with jax.set_mesh(job.mesh):
        traced = job.function.trace(*job.arguments)
        hardware = flops.program_flops(traced.jaxpr, job.text)
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            needed, limit = too_large(str(error), limit)
            return StepCost(
                memory=Memory(
                    arguments=job.argument_bytes,
                    temporaries=max(0.0, needed - job.argument_bytes),
                    total=needed,
                    limit=limit,
                    fits=False,
                ),
                compile_seconds=time.monotonic() - started,
                model_flops=job.flops,
                hardware_flops=hardware,
                hbm_bytes=None,
                collectives=(),
                unknown_loops=(),
                terms={},
            )
    text = compiled.as_text()
    memory = _memory(compiled.memory_analysis(), limit)
    traffic = hlo.Program(text).traffic(len(slices.devices), slices.count)
    # XLA for a CPU fuses otherwise than for a GPU: count what must move whatever it
    # does, the arguments in and their new values out.
    hbm = 2 * memory.arguments if slices.chip.gpu else traffic.hbm
    return StepCost(
        memory=memory,
        compile_seconds=time.monotonic() - started,
        model_flops=job.flops,
        hardware_flops=hardware,
        hbm_bytes=hbm,
        collectives=traffic.collectives,
        unknown_loops=traffic.unknown_loops,
        terms=_terms(slices, hardware, hbm, traffic.collectives),
    )


def _terms(
    slices: chips.Slices,
    operations: float,
    hbm: float,
    collectives: tuple[hlo.Collective, ...],
) -> dict[str, float]:
    chip = slices.chip
    ici = sum(c.count * c.ici for c in collectives)
    return {
        "compute": operations / len(slices.devices) / chip.share(chip.flops),
        "HBM": hbm / chip.share(chip.hbm_bandwidth),
        "ICI": ici / slices.ici if ici else 0.0,
        "DCN": sum(c.count * c.dcn for c in collectives) / chip.share(chip.dcn),
    }


def evaluation(job: Workload, slices: chips.Slices) -> Memory | None:
    """Memory while dev is scored, with the training state beside it; None: no dev."""
    if job.evaluation is None:
        return None
    function, arguments = job.evaluation
    beside = job.argument_bytes - bytes_of(arguments)
    limit = slices.chip.usable
    with jax.set_mesh(job.mesh):
        try:
            found = function.lower(*arguments).compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            needed, limit = too_large(str(error), limit)
            alone = Memory(bytes_of(arguments), needed, needed, limit, False)
        else:
            alone = _memory(found, limit)
    total = alone.total + max(0.0, beside)
    return dataclasses.replace(
        alone,
        arguments=alone.arguments + max(0.0, beside),
        total=total,
        fits=total <= limit,
    )


def _memory(found: Any, limit: float) -> Memory:
    total = found.argument_size_in_bytes + found.temp_size_in_bytes
    total += found.output_size_in_bytes - found.alias_size_in_bytes
    total += found.generated_code_size_in_bytes
    return Memory(
        arguments=found.argument_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        total=total,
        limit=limit,
        fits=total <= limit,
    )


def too_large(message: str, limit: float) -> tuple[float, float]:
    """(bytes needed, bytes there) of the compiler's message."""
    size = r"([\d.]+)([KMGT]?)i?B?"
    for pattern in (
        rf"[Uu]sed {size} of {size} hbm",
        rf"\({size}\) exceeds available HBM \({size}\)",
    ):
        found = re.search(pattern, message)
        if found:
            needed, there = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
            return needed, there
    return float("inf"), limit


def totals(collectives: tuple[hlo.Collective, ...]) -> dict[str, dict[str, float]]:
    """By kind: operations a step, and bytes that a device sends over ICI and DCN."""
    found: dict[str, dict[str, float]] = collections.defaultdict(
        lambda: {"operations": 0, "ici_bytes": 0.0, "dcn_bytes": 0.0}
    )
    for one in collectives:
        found[one.kind]["operations"] += one.count
        found[one.kind]["ici_bytes"] += one.count * one.ici
        found[one.kind]["dcn_bytes"] += one.count * one.dcn
    return dict(found)


# Model FLOPs utilisation that others publish for training, by chip, and where. Plans
# of decoders are held against it; nobody publishes one for small encoders.
MAXTEXT = "MaxText, reference/models/tiering"
PUBLISHED = {
    "v4": (0.57, "MaxText, Run_Llama2: Llama 2 70B on v4-128"),
    "v5e": (0.57, "MaxText, Run_Llama2: Llama 2 70B on v5e-256"),
    "v5p": (0.654, f"{MAXTEXT}: Llama 2 70B on 512 v5p"),
    "v6e": (0.455, f"{MAXTEXT}: Llama 3.1 8B on 256 v6e"),
    "h100": (0.47, "Megatron-Core, README: GPT-3 models on H100, up to"),
    "h200": (0.47, "Megatron-Core, README: GPT-3 models on H100, up to"),
    "a100": (0.52, "Narayanan et al., 2021, arXiv 2104.04473: a trillion on A100"),
}
ENCODERS = (0.39, "our BERT-base on one H200, docs/benchmarks.md; not this chip")


def expected(
    job: Workload, slices: chips.Slices, found: StepCost
) -> dict[str, Any] | None:
    """A step at the utilisation published for such models; None: none is known.

    Never shorter than the bound.
    """
    utilisation, source = ENCODERS
    if job.decoder:
        if slices.chip.name not in PUBLISHED:
            return None
        utilisation, source = PUBLISHED[slices.chip.name]
    peak = slices.chips * slices.chip.flops
    seconds = max(found.seconds, found.model_flops / (utilisation * peak))
    return {
        "utilisation": found.model_flops / (seconds * peak),
        "published": utilisation,
        "source": source,
        "step_seconds": seconds,
        "tokens_per_second": job.tokens / seconds,
        "chip_hours": _hours(job, slices, seconds),
    }


def _hours(job: Workload, slices: chips.Slices, seconds: float | None) -> float | None:
    if seconds is None or job.steps is None:
        return None
    return job.steps * seconds * slices.chips / 3600


def cost_as_dict(
    job: Workload, slices: chips.Slices, found: StepCost
) -> dict[str, Any]:
    """Everything as plain numbers, for JSON."""
    fits = found.memory.fits
    seconds = found.seconds if fits and found.terms else None
    peak = slices.chips * slices.chip.flops
    return {
        "stage": job.kind,
        "topology": slices.topology,
        "num_slices": slices.count,
        "chips": slices.chips,
        "mesh": dict(job.mesh.shape),
        "parameters": job.parameters,
        "tokens_per_step": job.tokens,
        "compile_seconds": found.compile_seconds,
        "compiler": "CPU" if slices.chip.gpu else "TPU",
        "memory": dataclasses.asdict(found.memory),
        "evaluation": found.evaluation and dataclasses.asdict(found.evaluation),
        "fits": found.fits,
        "model_flops": found.model_flops,
        "hardware_flops": found.hardware_flops,
        "flops_ratio": found.model_flops / found.hardware_flops,
        "hbm_bytes": found.hbm_bytes,
        "collectives": totals(found.collectives),
        "largest_collectives": [
            dataclasses.asdict(one)
            for one in sorted(
                found.collectives, key=lambda c: -c.count * (c.ici + c.dcn)
            )[:10]
        ],
        "unknown_loops": list(found.unknown_loops),
        "terms": found.terms,
        "step_seconds": seconds,
        "bound": found.bound if seconds else None,
        "tokens_per_second": job.tokens / seconds if seconds else None,
        "text_tokens": job.text,
        "pair_tokens": job.a_pair[0] or None,
        "pair_tokens_alone": job.a_pair[1] or None,
        "pairs_per_second": (
            job.tokens / job.a_pair[0] / seconds if seconds and job.a_pair[0] else None
        ),
        "model_flops_utilisation": (
            found.model_flops / (seconds * peak) if seconds else None
        ),
        "steps": job.steps,
        "by_epochs": job.by_epochs,
        "chip_hours": _hours(job, slices, seconds),
        "expected": expected(job, slices, found) if seconds else None,
    }
