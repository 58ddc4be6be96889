"""Checks that settings share; each raises `ConfigError`."""

from typing import Any

from ranker.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError` with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def positive(config: Any, *names: str) -> None:
    """Raises `ConfigError` for a named field that is not above 0."""
    for name in names:
        value = getattr(config, name)
        require(
            value > 0,
            f"{type(config).__name__}.{name} must be above 0, found {value}",
        )
