"""Errors whose message is a sentence for the user: what was found, and what to do.

Every entry prints them without a traceback; see `ranker.cli`.
"""

import reprlib

_short = reprlib.Repr()  # what a stranger's file holds may be of any size and depth
_short.maxlevel, _short.maxlist, _short.maxdict, _short.maxother = 2, 9, 3, 80


def shown(value: object) -> str:
    """A value for a message, cut to what a line can hold."""
    if not isinstance(value, (str, bytes)):
        return _short.repr(value)
    if len(value) <= 80:
        return repr(value)
    return f"{value[:80]!r}... ({len(value)} characters)"


class UserError(Exception):
    """Something that the user can mend; the message says how."""


class ConfigError(UserError, ValueError):
    """A setting that cannot work; the message names field, values and a way out."""


class DataError(UserError, ValueError):
    """Data that cannot be used; the message names file, line, field and a way out."""


class FieldError(UserError, ValueError):
    """A field of one record is wrong; a reader adds the file and the line.

    Args:
      field: name of the field.
      found: its value.
      expected: what a right value looks like.
    """

    def __init__(self, field: str, found: object, expected: str):
        super().__init__(f"field {field!r}: found {shown(found)}, expected {expected}")


class ModelError(UserError, ValueError):
    """A checkpoint that cannot be read; the message lists every problem."""


class ContractError(UserError, ValueError):
    """A folder without a usable score contract; says what was found."""


class StageError(UserError, RuntimeError):
    """A stage cannot start from what its workdir holds; says what it needs."""


class Stopped(UserError, RuntimeError):
    """A stage was told to stop and saved its work; the same command resumes it."""
