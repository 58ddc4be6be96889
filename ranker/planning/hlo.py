"""What a compiled program moves, read off its text: collectives and memory traffic.

The text is XLA's optimised HLO for one device. A `while` runs its body as often as its
condition says, and everything in the body counts as often; XLA's own cost analysis
counts it once.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BYTES = {
    "pred": 1,
    "s4": 0.5,
    "u4": 0.5,
    **{f"{sign}{bits}": bits // 8 for sign in "su" for bits in (8, 16, 32, 64)},
    **{"bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16},
}
# Not work: names for data that is there.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "while",
    "conditional",
    "call",
}
# What crosses the data-centre network is handed to the host, and named so.
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")


@dataclass(frozen=True)
class Shape:
    """An array, and whether it lies in HBM."""

    bytes: float
    hbm: bool


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    op: str
    shapes: tuple[Shape, ...]  # of its result; several for a tuple
    operands: tuple[str, ...]
    text: str  # what follows the operands
    root: bool
    literal: str  # what stands in the parentheses

    def attribute(self, name: str) -> str | None:
        """A computation that it calls, such as body=%NAME."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.text)
        return found[1] if found else None

    @property
    def bytes(self) -> float:
        """Of its result, wherever it lies."""
        return sum(shape.bytes for shape in self.shapes)


@dataclass
class Computation:
    """Instructions by name, in order."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @cached_property
    def root(self) -> Instruction:
        """What it returns."""
        return next(i for i in self.instructions.values() if i.root)

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who reads each instruction."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for one in self.instructions.values():
            for operand in one.operands:
                users.setdefault(operand, []).append(one)
        return users


@dataclass(frozen=True)
class Collective:
    """One collective operation of a program."""

    kind: str
    count: int  # how often a step runs it
    bytes: float  # of the larger of what goes in and what comes out, on a device
    ici: float  # bytes that a device sends within its slice, each time
    dcn: float  # bytes that a device sends to other slices, each time
    source: str  # of the operation in the model, where the compiler says


@dataclass(frozen=True)
class Transfers:
    """What one step moves, on one device."""

    collectives: tuple[Collective, ...]
    hbm: float  # bytes read and written
    unknown_loops: tuple[str, ...]  # loops whose trip count is not known, counted once


class Program:
    """The computations of an HLO module."""

    def __init__(self, text: str):
        """Parses the text of `compiled.as_text()`."""
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        current: Computation | None = None
        lines = text.splitlines()
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            if current is None:
                found = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
                if found and "->" in line:
                    current = Computation(found[2])
                    self.computations[found[2]] = current
                    self.entry = found[2] if found[1] else self.entry
            elif line == "}" and not following:  # a kernel's settings have such lines
                current = None
            else:
                one = _instruction(line)
                if one:
                    current.instructions[one.name] = one

    def traffic(self, num_devices: int, num_slices: int) -> Transfers:
        """What a step moves, with devices numbered slice by slice."""
        found: dict[tuple, Collective] = {}
        hbm, unknown = 0.0, []
        for owner, one, count, loop in self._walk(self.entry, 1, ()):
            kind = one.op.removesuffix("-start")
            if kind in KINDS:
                # What overlaps with computation is written several times.
                channel = re.search(r"channel_id=(\d+)", one.text)
                key = (loop, kind, channel[1] if channel else one.name)
                made = _collective(
                    one,
                    kind,
                    owner,
                    count=count,
                    num_devices=num_devices,
                    num_slices=num_slices,
                )
                found.setdefault(key, made)
            elif one.op == "send" and _MEGASCALE.search(one.text):
                key = (loop, "send", one.name)
                found[key] = _between_slices(one, count, num_slices)
            elif one.op == "while" and self.trips(owner, one) is None:
                unknown.append(one.name)
        for owner, one, count in self._top(self.entry, 1):
            hbm += count * self._moved(owner, one)
        collectives = tuple(one for one in found.values() if one.ici + one.dcn > 0)
        return Transfers(collectives, hbm, tuple(unknown))

    def trips(self, owner: Computation, loop: Instruction) -> int | None:
        """How often a `while` runs its body; None where the text does not say."""
        known = re.search(r'"?known_trip_count"?:\{"n":"(\d+)"\}', loop.text)
        if known:
            return int(known[1])
        condition = self.computations.get(loop.attribute("condition") or "")
        if condition is None or condition.root.op != "compare":
            return None
        compare = condition.root
        less = "direction=LT" in compare.text
        if not (less or "direction=GT" in compare.text):
            return None
        low, high = compare.operands if less else compare.operands[::-1]
        limit, place = _constant(condition, high), _place(condition, low)
        if limit is None or place is None:
            return None
        start = 0
        given = owner.instructions.get(loop.operands[0])
        if given is not None and given.op == "tuple":
            start = _constant(owner, given.operands[place]) or 0
        body = self.computations[loop.attribute("body") or ""]
        step = 1
        if body.root.op == "tuple":
            following = body.instructions.get(body.root.operands[place])
            if following is not None and following.op == "add":
                steps = [_constant(body, name) for name in following.operands]
                step = next((s for s in steps if s), 1)
        return max(0, -(-(limit - start) // step))

    def _walk(
        self, name: str, count: int, loop: tuple[str, ...]
    ) -> Iterator[tuple[Computation, Instruction, int, tuple[str, ...]]]:
        """Every instruction, also of fusions, and how often a step runs it."""
        owner = self.computations[name]
        for one in owner.instructions.values():
            yield owner, one, count, loop
            if one.op == "while":
                trips = self.trips(owner, one)
                trips = 1 if trips is None else trips
                body = one.attribute("body")
                if body in self.computations:
                    yield from self._walk(body, count * trips, (*loop, one.name))
            else:
                for called in _called(one):
                    if called in self.computations:
                        yield from self._walk(called, count, loop)

    def _top(
        self, name: str, count: int
    ) -> Iterator[tuple[Computation, Instruction, int]]:
        """Instructions that read and write memory: fusions are one each."""
        owner = self.computations[name]
        for one in owner.instructions.values():
            if one.op == "while":
                body = one.attribute("body")
                if body in self.computations:
                    trips = self.trips(owner, one)
                    yield from self._top(body, count * (1 if trips is None else trips))
            elif one.op in ("call", "conditional"):
                for called in _called(one):
                    if called in self.computations:
                        yield from self._top(called, count)
            elif one.op not in _FREE and not one.op.endswith("-done"):
                yield owner, one, count

    def _moved(self, owner: Computation, one: Instruction) -> float:
        """Bytes of HBM that an instruction reads and writes."""
        fused = None
        if one.op == "fusion":
            fused = self.computations.get(one.attribute("calls") or "")
        if fused is None:
            reads = [owner.instructions.get(name) for name in one.operands]
            if one.op in ("dynamic-slice", "gather", "slice"):
                return 2 * _hbm(one)
            if one.op in ("dynamic-update-slice", "scatter"):
                update = reads[1 if one.op == "dynamic-update-slice" else -1]
                return 2 * _hbm(update) if update else 0.0
            if one.op.endswith("-start"):  # its result repeats its operand
                return _hbm(one)
            return _hbm(one) + sum(_hbm(read) for read in reads if read)
        total = _written(fused, one)
        parameters = [i for i in fused.instructions.values() if i.op == "parameter"]
        for parameter in parameters:
            place = int(parameter.literal)
            given = owner.instructions.get(one.operands[place])
            if given is not None:
                total += min(_hbm(given), _read(fused, parameter, given))
        return total


def _hbm(one: Instruction) -> float:
    return sum(shape.bytes for shape in one.shapes if shape.hbm)


def _read(fused: Computation, parameter: Instruction, given: Instruction) -> float:
    """Of a fusion's operand: what is read, which a slice makes less."""
    if not all(shape.hbm for shape in given.shapes):
        return 0.0
    users = fused.users[parameter.name]
    if users and all(user.op in ("dynamic-slice", "gather", "slice") for user in users):
        return sum(user.bytes for user in users)
    if users and all(
        user.op == "dynamic-update-slice" and user.operands[0] == parameter.name
        for user in users
    ):
        return 0.0  # written in place
    return given.bytes


def _written(fused: Computation, one: Instruction) -> float:
    root = fused.root
    results = [fused.instructions.get(name) for name in root.operands]
    roots = results if root.op == "tuple" else [root]
    total = 0.0
    for shape, result in zip(one.shapes, roots, strict=False):
        if not shape.hbm:
            continue
        if result is not None and result.op == "dynamic-update-slice":
            update = fused.instructions.get(result.operands[1])
            total += update.bytes if update else shape.bytes
        else:
            total += shape.bytes
    return total


def _constant(owner: Computation, name: str) -> int | None:
    one = owner.instructions.get(name)
    if one is not None and one.op == "constant" and re.fullmatch(r"-?\d+", one.literal):
        return int(one.literal)
    return None


def _place(condition: Computation, name: str) -> int | None:
    """Which element of the loop's tuple an instruction is."""
    one = condition.instructions.get(name)
    if one is None or one.op != "get-tuple-element":
        return None
    found = re.search(r"index=(\d+)", one.text)
    return int(found[1]) if found else None


def _called(one: Instruction) -> list[str]:
    names = [one.attribute(key) for key in ("calls", "to_apply")]
    branches = re.search(r"branch_computations=\{([^}]*)\}", one.text)
    names += re.findall(r"%?([\w.\-]+)", branches[1]) if branches else []
    names += [
        one.attribute(f"{key}_computation") for key in ("true", "false", "called")
    ]
    return [name for name in names if name]


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    rest = line[found.end() :]
    if rest.startswith("("):
        end = _closing(rest, 0) + 1
    else:
        end = rest.find(" ")
    shapes, rest = rest[:end], rest[end:].lstrip()
    opening = rest.find("(")
    if opening < 0:
        return None
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    return Instruction(
        name=found[2],
        op=rest[:opening].strip(),
        shapes=tuple(_shapes(shapes)),
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
        text=rest[closing + 1 :],
        root=bool(found[1]),
        literal=inside,
    )


def _closing(text: str, opening: int) -> int:
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    return len(text)


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, sizes, layout in _SHAPE.findall(text):
        size = math.prod(map(int, filter(None, sizes.split(","))))
        # S(1) and the like are memories on the chip.
        hbm = not re.search(r"S\([1-9]", layout)
        yield Shape(size * _BYTES.get(dtype, 1 if dtype.startswith("f8") else 0), hbm)


def groups(text: str, num_devices: int) -> list[list[int]]:
    """The devices of each group of a collective, as its attributes say."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text)
    if pairs:
        return [list(map(int, p)) for p in re.findall(r"\{(\d+),(\d+)\}", pairs[1])]
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", text)
    if listed:
        found = [
            list(map(int, filter(None, one.split(","))))
            for one in re.findall(r"\{([\d,]*)\}", listed[1])
        ]
        return [one for one in found if one] or [list(range(num_devices))]
    iota = re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text
    )
    if iota:
        order = _transposed(_numbers(iota[3]), _numbers(iota[4] or ""))
        size = int(iota[2])
        return [order[i : i + size] for i in range(0, len(order), size)]
    # mesh['a'=2,'b'=4] {'b'}: one group for each place along the axes not named.
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", text)
    if mesh:
        axes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        named = re.findall(r"'([^']+)'", mesh[2])
        sizes = [int(size) for size in axes.values()]
        kept = [i for i, axis in enumerate(axes) if axis not in named]
        moved = [list(axes).index(axis) for axis in named if axis in axes]
        order = _transposed(sizes, kept + moved)
        size = math.prod(sizes[i] for i in moved)
        return [order[i : i + size] for i in range(0, len(order), size)]
    return [list(range(num_devices))]


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",") if one]


def _transposed(sizes: list[int], order: list[int]) -> list[int]:
    """0, 1, 2, ... as an array of `sizes`, its dimensions put in `order`, flat."""
    order = order or list(range(len(sizes)))
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    flat = [0]
    for dimension in order:
        flat = [
            base + step * strides[dimension]
            for base in flat
            for step in range(sizes[dimension])
        ]
    return flat


def _collective(
    one: Instruction,
    kind: str,
    owner: Computation,
    *,
    count: int,
    num_devices: int,
    num_slices: int,
) -> Collective:
    operands = [owner.instructions.get(name) for name in one.operands]
    given = sum(operand.bytes for operand in operands if operand)
    result = one.bytes
    if one.op.endswith("-start") and len(one.shapes) > 1:
        # The result of a start is (operands, results, counters).
        result = max(given, result - given)
        if kind == "collective-permute":
            result = given or one.shapes[0].bytes
    size = max(given, result)
    members = groups(one.text, num_devices)
    ici, dcn = _sent(kind, size, members, num_devices // num_slices)
    name = re.search(r'op_name="([^"]*)"', one.text)
    return Collective(kind, count, size, ici, dcn, name[1] if name else "")


def _between_slices(one: Instruction, count: int, num_slices: int) -> Collective:
    found = _MEGASCALE.search(one.text)
    assert found is not None
    kind = found[1].lower().replace("_", "-")
    size = one.shapes[0].bytes
    rounds = 2 if kind == "all-reduce" else 1
    sent = rounds * size * (num_slices - 1) / num_slices
    name = re.search(r'op_name="([^"]*)"', one.text)
    return Collective(kind, count, size, 0.0, sent, name[1] if name else "")


def _sent(
    kind: str, size: float, members: list[list[int]], per_slice: int
) -> tuple[float, float]:
    """Bytes that a device sends within its slice, and to others, by rings.

    Across slices the parts of a slice's devices are summed or gathered within it first,
    so that each byte crosses once.
    """
    if kind == "collective-permute":
        far = sum(a // per_slice != b // per_slice for a, b in members)
        near = sum(a != b for a, b in members) - far
        total = max(len(members), 1)
        return size * near / total, size * far / total
    group = max(members, key=len)
    slices = len({device // per_slice for device in group})
    inside = len(group) // slices
    rounds = 2 if kind == "all-reduce" else 1
    ici = rounds * size * (inside - 1) / inside
    dcn = rounds * size / inside * (slices - 1) / slices
    return ici, dcn
