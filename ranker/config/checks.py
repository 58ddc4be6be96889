"""Checks that settings share; each raises `ConfigError`."""

import math
from typing import Any

from ranker.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError` with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def positive(config: Any, *names: str) -> None:
    """Raises `ConfigError` for a named field that is not above 0, or not finite."""
    for name in names:
        value = getattr(config, name)
        require(
            0 < value < math.inf,
            f"{type(config).__name__}.{name} must be above 0"
            f"{' and finite' if value > 0 else ''}, found {value}",
        )


def not_negative(config: Any, *names: str) -> None:
    """Raises `ConfigError` for a named field that is below 0, or not finite."""
    for name in names:
        value = getattr(config, name)
        require(
            0 <= value < math.inf,
            f"{type(config).__name__}.{name} must be 0 or more"
            f"{' and finite' if value > 0 else ''}, found {value}",
        )


def whole_or_share(name: str, value: float) -> None:
    """Raises `ConfigError` for a number of steps that is neither whole nor below 1."""
    require(
        value < 1 or value == int(value),
        f"{name} must be a whole number of steps, or a share below 1, found {value}",
    )


def rate(name: str, value: float) -> None:
    """Raises `ConfigError` for a rate of dropout that is not in [0, 1)."""
    require(0 <= value < 1, f"{name} must be in [0, 1), found {value}")
