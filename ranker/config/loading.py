"""Loads a config file and applies typed overrides from the command line."""

import dataclasses
import difflib
import pathlib
import runpy
import sys
from collections.abc import Sequence
from typing import Any

from ranker.config.models import Decoder, Encoder, Pretrained, Rope
from ranker.config.training import Lora
from ranker.errors import ConfigError


def load(path: str, overrides: Sequence[str], *, of: type | tuple[type, ...]) -> Any:
    """Runs a config file's `get_config` and applies overrides.

    Args:
      path: a Python file that defines `get_config(variant="")`; a variant is written
        behind a colon, `configs/sft.py:smoke`, and is one of the file's `VARIANTS`
        where it has them.
      overrides: flags such as `--config.optim.learning_rate=3e-5`; `--help` prints
        every field with its value and unit and exits.
      of: config class that the entry takes.

    Raises:
      ConfigError: when the file is missing, lacks the variant, or makes a config for
        another entry.
      SystemExit: on `--help`, an unknown field or a value of the wrong type, after
        printing the nearest right field (from tyro).
    """
    import tyro  # here, so that importing a config stays instant

    path, _, variant = path.partition(":")
    file = pathlib.Path(path)
    if not file.is_file():
        near = difflib.get_close_matches(
            str(file), [str(other) for other in file.parent.glob("*.py")], n=3
        )
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"--config: no such file: {file}{hint}")
    defined = runpy.run_path(str(file))
    variants = defined.get("VARIANTS", (variant,))
    if variant and variant not in variants:
        known = f"its variants are {', '.join(variants)}" if variants else "it has none"
        raise ConfigError(f"--config: {path} has no variant {variant!r}; {known}")
    default = defined["get_config"](variant)
    if not isinstance(default, of):
        wanted = of if isinstance(of, tuple) else (of,)
        raise ConfigError(
            f"--config: {path} makes a {type(default).__name__} config, and this "
            f"command takes {' or '.join(one.__name__ for one in wanted)}"
        )
    # One field called "config" gives every flag its prefix, in --help as in use.
    flags = dataclasses.make_dataclass("Flags", [("config", type(default))])
    return tyro.cli(
        flags,
        default=flags(default),
        args=list(overrides),
        prog=f"python -m ranker.{pathlib.Path(sys.argv[0]).stem} --config {path}",
        description=type(default).__doc__,
        use_underscores=True,
        config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
    ).config


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain dicts, lists and scalars; dataclasses name their class."""
    if dataclasses.is_dataclass(config):
        fields = {
            one.name: to_dict(getattr(config, one.name))
            for one in dataclasses.fields(config)
        }
        return {"class": type(config).__name__, **fields}
    if isinstance(config, tuple | list):
        return [to_dict(item) for item in config]  # type: ignore[return-value]
    return config


def from_dict(fields: dict[str, Any]) -> Any:
    """The config of a model or of adapters that `to_dict` wrote.

    Raises:
      ConfigError: when the class or a field is unknown to this version.
    """
    classes = {one.__name__: one for one in (Decoder, Encoder, Rope, Pretrained, Lora)}

    def build(value: Any) -> Any:
        if isinstance(value, dict):
            rest = {name: build(one) for name, one in value.items()}
            return classes[rest.pop("class")](**rest)
        return tuple(value) if isinstance(value, list) else value

    try:
        return build(fields)
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"the saved config {fields} does not fit this version: {error}"
        ) from error
