"""Other meshes, remat policies and batch sizes for a stage, those that fit ranked."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from ranker import config
from ranker.chips import GIB
from ranker.planning import chips
from ranker.planning.estimate import StepCost, step_cost
from ranker.planning.job import TextLengths, Workload, make_job

# From what takes least memory to what takes most.
REMATS: tuple[config.Remat, ...] = ("full", "attention", "dots", "none")
assert set(REMATS) == set(get_args(config.Remat))
_SIZES = (1.0, 2.0, 0.5)  # times the config's batch


@dataclass(frozen=True)
class Option:
    """A way to run the stage, as flags for the run."""

    settings: Any
    teacher: config.Train | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Compiled:
    """A candidate and what compiling it has shown."""

    candidate: Option
    job: Workload
    estimate: StepCost


def meshes(devices: int) -> list[config.Mesh]:
    """Meshes of one slice, the likeliest first."""
    found = [config.Mesh(data=1, fsdp=devices)]
    for parts in (2, 4):
        if devices % parts == 0 and devices > parts:
            found.append(config.Mesh(data=1, fsdp=devices // parts, tensor=parts))
            found.append(config.Mesh(data=parts, fsdp=devices // parts))
    if devices > 1:
        found.append(config.Mesh(data=devices))
    return found


def options(
    settings: config.Train | config.Score, teacher: config.Train | None, devices: int
) -> Iterator[Option]:
    """All that are tried, by mesh, then batch, then remat policy."""
    for mesh in meshes(devices):
        flags = tuple(
            f"--config.mesh.{name}={getattr(mesh, name)}"
            for name in ("data", "fsdp", "tensor")
        )
        for factor in _SIZES:
            if isinstance(settings, config.Score):
                rows = int(settings.rows * factor)
                if rows > 0:
                    changed = dataclasses.replace(settings, mesh=mesh, rows=rows)
                    yield Option(changed, teacher, (*flags, f"--config.rows={rows}"))
                continue
            size = int(settings.batch.size * factor)
            if size == 0 or size % settings.batch.accumulate:
                continue
            batch = dataclasses.replace(settings.batch, size=size)
            for remat in REMATS:
                model = dataclasses.replace(settings.model, remat=remat)
                changed = dataclasses.replace(
                    settings, mesh=mesh, batch=batch, model=model
                )
                more = f"--config.batch.size={size}", f"--config.model.remat={remat}"
                yield Option(changed, None, (*flags, *more))


def search(
    settings: config.Train | config.Score,
    teacher: config.Train | None,
    slices: chips.Slices,
    *,
    pairs: int | None,
    texts: TextLengths,
    most: int,
    note: Callable[[str], None],
) -> list[Compiled]:
    """Compiles candidates until `most` have been; those that fit, the fastest first.

    What cannot fit is not compiled: where the arguments alone are too large, and where
    the same mesh did not fit with less to keep.
    """
    found: list[Compiled] = []
    too_much: list[Option] = []
    tried = 0
    devices = len(slices.devices) // slices.count
    for candidate in options(settings, teacher, devices):
        if tried == most:
            note(f"stops after {most} programs; --max-programs sets how many")
            break
        if any(needs_more(candidate, other) for other in too_much):
            continue
        name = " ".join(candidate.flags)
        try:
            job = make_job(candidate.settings, teacher, slices.devices, pairs, texts)
            if job.argument_bytes > slices.chip.usable:
                note(f"{name}: arguments of {job.argument_bytes / GIB:.1f} GiB")
                too_much.append(candidate)
                continue
            result = step_cost(job, slices)
        except config.ConfigError as error:
            note(f"{name}: {error}")
            continue
        tried += 1
        memory = result.memory
        if memory.fits:
            found.append(Compiled(candidate, job, result))
            rate = f"{job.tokens / result.seconds:,.0f} tokens/s, {result.bound}"
        else:
            too_much.append(candidate)
            rate = "does not fit"
        note(f"{name}: {memory.total / GIB:.2f} GiB, {rate}")
    return sorted(
        found,
        key=lambda one: (-one.job.tokens / one.estimate.seconds, one.job.tokens),
    )


def needs_more(one: Option, other: Option) -> bool:
    """Whether `one` keeps at least as much as `other` on the same mesh."""
    a, b = one.settings, other.settings
    if a.mesh != b.mesh:
        return False
    if isinstance(a, config.Score):
        return a.rows >= b.rows
    order = REMATS.index
    return a.batch.size >= b.batch.size and (
        order(a.model.remat) >= order(b.model.remat)
    )
