"""`--sweep FIELD=a,b,c`: one stage several times, with other values of some fields."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ranker.config.checks import require
from ranker.errors import ConfigError

_REFUSED = {
    "name": "each run of a sweep gets a name of its own",
    "parent": "the runs of a sweep begin from the same stage",
    "data": "the runs of a sweep share what was prepared",
}


@dataclass(frozen=True)
class Trial:
    """One combination of values, as text, by field."""

    values: tuple[tuple[str, str], ...]

    @property
    def flags(self) -> list[str]:
        """As the command line would say them."""
        return [f"--config.{field}={value}" for field, value in self.values]

    @property
    def suffix(self) -> str:
        """What the stage's name is given, so that each run has a folder."""
        parts = [f"{field.rsplit('.', 1)[-1]}-{value}" for field, value in self.values]
        return re.sub(r"[^A-Za-z0-9.+_-]", "-", "-".join(parts))


def trials(given: Sequence[str]) -> list[Trial]:
    """Every combination of the values; the last field varies fastest.

    Args:
      given: each a field and its values, "optim.learning_rate=1e-4,3e-4".

    Raises:
      ConfigError: for what is not of that form, one field twice, or a field that all
        runs of a sweep share.
    """
    fields: dict[str, list[str]] = {}
    for text in given:
        field, equals, listed = text.partition("=")
        field = field.strip().removeprefix("--").removeprefix("config.")
        values = [one.strip() for one in listed.split(",")]
        require(
            bool(equals and field) and all(values),
            f"--sweep {text}: expected FIELD=VALUE,VALUE such as "
            "optim.learning_rate=1e-4,3e-4",
        )
        require(len(set(values)) == len(values), f"--sweep {text}: names a value twice")
        require(field not in fields, f"--sweep names {field} twice; give it one list")
        for refused, why in _REFUSED.items():
            require(
                field != refused and not field.startswith(f"{refused}."),
                f"--sweep {field}: {why}; sweep another field",
            )
        fields[field] = values
    found = [
        Trial(tuple(zip(fields, values, strict=True)))
        for values in itertools.product(*fields.values())
    ]
    names = [one.suffix for one in found]
    twice = next((one for one in names if names.count(one) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"--sweep: two runs would have the folder NAME-{twice}; give values that "
            "differ in letters, digits, dots and signs"
        )
    return found
