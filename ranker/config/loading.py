"""Loads a config file and applies typed overrides from the command line."""

import dataclasses
import difflib
import pathlib
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ranker.config.data import ClickRules, Data, Negatives, Text, World
from ranker.config.models import Decoder, Encoder, Pretrained, Rope
from ranker.config.pipeline import Pipeline
from ranker.config.training import Lora
from ranker.errors import ConfigError


def load(
    path: str,
    overrides: Sequence[str],
    *,
    of: type | tuple[type, ...],
    stage: str = "",
    start: Callable[[Any], Any] = lambda default: default,
) -> Any:
    """Runs a config file's `get_config` and applies overrides.

    Args:
      path: a Python file that defines `get_config(variant="")`; a variant follows a
        colon, `configs/sft.py:smoke`, and is one of the file's `VARIANTS` where it has
        them.
      overrides: flags such as `--config.optim.learning_rate=3e-5`; `--help` prints
        every field with its value and unit and exits.
      of: config class that the entry takes.
      stage: which stage of a pipeline; "": the only one that the entry takes.
      start: gives the config that the overrides are applied to.

    Raises:
      ConfigError: when the file is missing, lacks the variant or the stage, or makes a
        config for another entry.
      SystemExit: on `--help`, an unknown field or a value of the wrong type, after
        printing the nearest right field (from tyro).
    """
    import tyro  # here, so that importing a config stays instant

    wanted = of if isinstance(of, tuple) else (of,)
    default = get_config(path)
    if isinstance(default, Pipeline) and Pipeline not in wanted:
        default = _choose_stage(path, default, wanted, stage)
    elif stage:
        raise ConfigError(
            f"--stage {stage} names a stage of a pipeline, but {path} makes a "
            f"{type(default).__name__} config; leave --stage out"
        )
    if not isinstance(default, of):
        raise ConfigError(
            f"--config: {path} makes a {type(default).__name__} config, and this "
            f"command takes {' or '.join(one.__name__ for one in wanted)}"
        )
    # One field called "config" gives every flag its prefix, in --help as in use.
    flags = dataclasses.make_dataclass("Flags", [("config", type(default))])
    chosen = f" --stage {stage}" if stage else ""
    return tyro.cli(
        flags,
        default=flags(start(default)),
        args=list(overrides),
        prog=f"{_program()} --config {path}{chosen}",
        description=type(default).__doc__,
        use_underscores=True,
        config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
    ).config


# Stands in a config file for a path that has no default: a flag must give it.
REQUIRED = "REQUIRED"


def check_given(settings: Any, path: str) -> None:
    """Raises `ConfigError` where a setting that must be given is not.

    Args:
      settings: a config with its overrides.
      path: of the config file, for the message.
    """
    names = list(_required(settings))
    missing = [
        f"--config.{name}=..."
        for name in names
        if not any(name.endswith(f".{other}") for other in names)  # copied from it
    ]
    if missing:
        raise ConfigError(
            f"{path} has no default for a path that it needs; add {' '.join(missing)} "
            "(the head of the file shows a whole command, --help what the path may be)"
        )


def _required(settings: Any) -> Iterator[str]:
    """Dotted names of the fields that are REQUIRED."""
    for one in dataclasses.fields(settings):
        value = getattr(settings, one.name)
        if value == REQUIRED:
            yield one.name
        elif dataclasses.is_dataclass(value):
            yield from (f"{one.name}.{name}" for name in _required(value))


def _program() -> str:
    """How this entry was called."""
    called = sys.argv[0]
    if called.startswith("ranker "):
        return called
    return f"python -m ranker.{pathlib.Path(called).stem}"


def get_config(path: str) -> Any:
    """The config that a file makes, without overrides.

    Raises:
      ConfigError: when the file is missing or lacks the variant.
    """
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
    return defined["get_config"](variant)


def beside(file: str, other: str, variant: str) -> Any:
    """The config of another file in the folder of a config file.

    Args:
      file: `__file__` of the config file.
      other: name of the other one.
      variant: of the other one; "" for none.
    """
    path = pathlib.Path(file).with_name(other)
    return get_config(f"{path}:{variant}" if variant else str(path))


def _choose_stage(
    path: str, pipeline: Pipeline, wanted: tuple[type, ...], stage: str
) -> Any:
    stages = pipeline.stages()
    fitting = [name for name, one in stages.items() if isinstance(one, wanted)]
    if not stage and len(fitting) == 1:
        return stages[fitting[0]]
    if stage in fitting:
        return stages[stage]
    kinds = " or ".join(one.__name__ for one in wanted)
    if stage in stages:
        raise ConfigError(
            f"--stage {stage} of {path} is a {type(stages[stage]).__name__} stage, but "
            f"this command takes {kinds}; name one of {', '.join(fitting)}"
        )
    found = f"has no stage {stage!r}" if stage else "is a pipeline of several stages"
    raise ConfigError(
        f"{path} {found}; name one that this command takes: --stage "
        f"{' or '.join(fitting)}"
    )


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
    """The config of a model, of adapters, of data or of text that `to_dict` wrote.

    Raises:
      ConfigError: when the class or a field is unknown to this version.
    """
    known = (
        Decoder,
        Encoder,
        Rope,
        Pretrained,
        Lora,
        Data,
        Text,
        Negatives,
        World,
        ClickRules,
    )
    classes = {one.__name__: one for one in known}

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
