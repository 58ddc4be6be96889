"""Names of measures: what "P(rel=2)@10" or "ndcg_cut_10" asks for.

A name is `BASE`, then parameters in brackets, then a cut: `RBP(p=0.8)`, `NDCG@10`,
`ERR(max=4)@20`. Case does not matter. The names of trec_eval and ir_measures are taken
too; a column keeps the name that was asked for.
"""

import difflib
import math
import re
from dataclasses import dataclass
from typing import Any

_NAMES: dict[str, tuple[str, ...]] = {  # base -> other names, in small letters
    "NDCG": ("ndcg_cut",),
    "NDCG-exp": ("ndcg_exp",),
    "MRR": ("rr", "recip_rank"),
    "MAP": ("ap", "map_cut"),
    "P": ("precision",),
    "R": ("recall",),
    "Rprec": ("r-prec", "r-precision"),
    "Success": ("hits",),
    "ERR": (),
    "RBP": (),
    "RBP-residual": (),
    "Bpref": (),
    "Judged": (),
    "PNR": (),
    "PNR-macro": (),
    "OPA": (),
    "OPA-macro": (),
    "num_q": ("numq",),
    "num_ret": ("numret",),
    "num_rel": ("numrel",),
    "num_rel_ret": ("numrelret",),
}
PAIR_MEASURES = ("PNR", "PNR-macro", "OPA", "OPA-macro")
COUNTS = ("num_q", "num_ret", "num_rel", "num_rel_ret")
BASES = tuple(_NAMES)
NEEDS_CUT = ("P", "Success", "Judged")
WITHOUT_CUT = ("Rprec", "Bpref", *PAIR_MEASURES, *COUNTS)
# What is 0 for a query without a relevant document, whatever a run does.
NEEDS_RELEVANT = (
    *("MRR", "MAP", "P", "R", "Rprec", "Success", "RBP", "Bpref"),
    *("num_rel", "num_rel_ret"),
)
GRADED = ("NDCG", "NDCG-exp", "ERR")  # and RBP with max: gains follow the grade
_ORDERED = ("NDCG", "NDCG-exp", "MRR", "MAP", "P", "R", "Rprec", "Success", "ERR")
_PARAMETERS: dict[str, tuple[str, ...]] = {  # parameter -> bases that take it
    "rel": (*NEEDS_RELEVANT, "num_ret"),
    "gains": ("NDCG",),
    "dcg": ("NDCG",),
    "p": ("RBP", "RBP-residual"),
    "max": ("ERR", "RBP"),
    "judged_only": (*_ORDERED, "RBP"),
    "complete": PAIR_MEASURES,
}
_DEEPEST = 10**9 - 1  # cut
_OTHER_PARAMETERS = {"max_rel": "max", "relevance": "rel"}
_NAME = re.compile(r"([A-Za-z_-]+?)(?:[_.](\d+))?(?:\((.*)\))?(?:@(\S+))?")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure and its parameters."""

    name: str  # as asked for
    base: str  # one of BASES
    k: int | None = None  # documents that count; None: all
    rel: float | None = None  # lowest relevant grade; None: that of the rules
    gains: tuple[tuple[float, float], ...] = ()  # grade, gain; other grades gain theirs
    p: float = 0.8  # RBP's persistence
    max: float | None = None  # highest grade; None: that of the judgements
    judged_only: bool = False  # documents without a judgement take up no rank
    complete: bool | None = None  # all judged pairs; None: that of the rules


def parse_measure(name: str) -> Measure:
    """The measure that a name asks for.

    Raises:
      ValueError: for an unknown measure or parameter, a value that it does not take, or
        a cut that it does not take; the message lists what is valid.

    >>> parse_measure("P_10") == parse_measure("p@10")
    False
    >>> parse_measure("P_10").base, parse_measure("P(rel=2)@10").rel
    ('P', 2.0)
    """
    match = _NAME.fullmatch(name.strip())
    if not match:
        raise _unknown(name)
    word, under, inside, cut = match.groups()
    base = _base(word)
    if base is None or (under and cut):
        raise _unknown(name)
    parameters = _parse_parameters(name, base, inside or "")
    if base == "NDCG" and parameters.pop("dcg", "") == "exp-log2":
        base = "NDCG-exp"
    if base == "num_ret" and "rel" in parameters:  # ir_measures' NumRet(rel=1)
        base = "num_rel_ret"
    if "rel" in parameters and "max" in parameters:
        raise ValueError(
            f"measure {name!r}: with max the gain is the grade's, and rel has no "
            f"effect; write {base}(max={parameters['max']:g})"
        )
    k = _parse_cut(name, base, cut or under)
    return Measure(name=name, base=base, k=k, **parameters)


def _base(word: str) -> str | None:
    small = word.lower()
    for base, others in _NAMES.items():
        if small == base.lower() or small in others:
            return base
    return None


def _shown(base: str) -> str:
    return base if base in WITHOUT_CUT else f"{base}@k"


def _unknown(name: str) -> ValueError:
    words = {base.lower(): base for base in BASES}
    words |= {other: base for base, others in _NAMES.items() for other in others}
    stem = re.sub(r"[@(_.\d].*", "", name.lower())
    near = difflib.get_close_matches(stem, words, n=1, cutoff=0.5)
    hint = f"; did you mean {_shown(words[near[0]])}?" if near else "."
    valid = ", ".join(map(_shown, BASES))
    return ValueError(
        f"unknown measure {name!r}{hint} Valid are {valid}, with k from 1; all but "
        f"{', '.join(NEEDS_CUT)} also without @k; and the names of trec_eval and "
        "ir_measures for them"
    )


def _parse_cut(name: str, base: str, cut: str | None) -> int | None:
    if cut is None:
        if base in NEEDS_CUT:
            raise ValueError(f"measure {name!r} needs a cut; write {name}@10")
        return None
    if base in WITHOUT_CUT:
        raise ValueError(f"measure {name!r} takes no cut; write {base}")
    if not re.fullmatch(r"[1-9]\d{0,8}", cut):
        raise ValueError(
            f"measure {name!r}: found the cut {cut!r}, expected a whole number from 1 "
            f"to {_DEEPEST:,}, as in {base}@10"
        )
    return int(cut)


def _parse_parameters(name: str, base: str, inside: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in re.split(r",(?![^{]*\})", inside) if inside.strip() else ():
        key, equals, value = (one.strip() for one in part.partition("="))
        key = _OTHER_PARAMETERS.get(key.lower(), key.lower())
        taken = [one for one, bases in _PARAMETERS.items() if base in bases]
        if not equals or key not in taken:
            known = f"it takes {', '.join(taken)}" if taken else "it takes none"
            raise ValueError(
                f"measure {name!r}: found the parameter {part.strip()!r}; {known}, as "
                f"in {_EXAMPLES.get(taken[0] if taken else '', base)}"
            )
        if key in found:
            raise ValueError(f"measure {name!r}: {key} is given twice; give it once")
        try:
            found[key] = _READ[key](value.strip("'\""))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"measure {name!r}: found {key}={value}, expected {_EXPECTED[key]}, as "
                f"in {_EXAMPLES[key]}"
            ) from error
    return found


def _number(value: str, low: float, high: float = math.inf) -> float:
    number = float(value)
    if not (low < number < high and math.isfinite(number)):
        raise ValueError(value)
    return number


def _flag(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ValueError(value)
    return value.lower() == "true"


def _gains(value: str) -> tuple[tuple[float, float], ...]:
    if not (value.startswith("{") and value.endswith("}")):
        raise ValueError(value)
    pairs = [one.split(":") for one in value[1:-1].split(",")]
    gains = {float(grade): float(gain) for grade, gain in pairs}
    if len(gains) < len(pairs) or not all(map(math.isfinite, gains)):
        raise ValueError(value)
    if not all(0 <= one < math.inf for one in gains.values()):
        raise ValueError(value)
    return tuple(sorted(gains.items()))


def _dcg(value: str) -> str:
    if value not in ("log2", "exp-log2"):
        raise ValueError(value)
    return value


_READ = {
    "rel": lambda value: _number(value, 0),
    "gains": _gains,
    "dcg": _dcg,
    "p": lambda value: _number(value, 0, 1),
    "max": lambda value: _number(value, 0),
    "judged_only": _flag,
    "complete": _flag,
}
_EXPECTED = {
    "rel": "a grade above 0",
    "gains": "one gain, from 0, of each grade, in braces",
    "dcg": "log2 or exp-log2",
    "p": "a number between 0 and 1",
    "max": "a grade above 0",
    "judged_only": "true or false",
    "complete": "true or false",
}
_EXAMPLES = {
    "rel": "P(rel=2)@10",
    "gains": "NDCG(gains={1:1,2:3})@10",
    "dcg": "NDCG(dcg=exp-log2)@10",
    "p": "RBP(p=0.8)",
    "max": "ERR(max=4)@10",
    "judged_only": "MAP(judged_only=true)",
    "complete": "OPA(complete=true)",
}
