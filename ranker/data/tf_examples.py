"""Bytes of tf.train.Example records, made of columns: a tenth of protobuf's time.

Every layer of a record (value, list, feature, entry of the map, features) is a tag, the
length of what follows, and that: columns of bytes, which Arrow joins row by row.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

_compute: Any = pyarrow.compute  # makes its functions while it is imported
_BYTES = pa.large_binary()
_KNOWN = 1 << 14  # numbers whose bytes are looked up
_LONGER = 128 ** np.arange(1, 9)  # from each of these on, a number takes one byte more
_ONE = b"\x0a"  # the tag of a message's first field, where that has a length
_INTEGERS = b"\x1a"  # and of its third
_SECOND = b"\x12"


def encode(columns: Mapping[str, Any]) -> list[bytes]:
    """One record a row, with one value of each field.

    Args:
      columns: Arrow arrays of texts or of whole numbers from 0 on, without nulls, by
        the names of the fields.
    """
    pieces: list[Any] = []
    size: Any = 0
    for name, column in columns.items():
        found, length = _entry(name.encode(), column)
        pieces += found
        size = size + length
    return _join(_ONE, _varints(size), *pieces).to_pylist()


def _entry(name: bytes, column: Any) -> tuple[list[Any], Any]:
    """Pieces of a field, to be joined, and the length of each row's."""
    if pa.types.is_integer(column.type):
        kind, values = _INTEGERS, _varints(column.to_numpy(zero_copy_only=False))
    else:
        kind, values = _ONE, _compute.cast(column, _BYTES)
    pieces: list[Any] = [values]
    size = _compute.binary_length(values).to_numpy(zero_copy_only=False)
    named = _ONE + _varint(len(name)) + name + _SECOND
    for tag in (_ONE, kind, named, _ONE):  # value, list, feature, entry
        pieces = [tag, _varints(size), *pieces]
        size = len(tag) + 1 + np.searchsorted(_LONGER, size, side="right") + size
    return pieces, size


def _join(*pieces: Any) -> Any:
    found = [
        pa.scalar(one, _BYTES) if isinstance(one, bytes) else one
        for one in (*pieces, b"")
    ]
    return _compute.binary_join_element_wise(*found)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have the eighth set."""
    result = bytearray()
    while number > 127:
        result.append(number & 127 | 128)
        number >>= 7
    return bytes([*result, number])


@functools.cache
def _table() -> Any:
    return pa.array(map(_varint, range(_KNOWN)), _BYTES)


def _varints(numbers: Any) -> Any:
    if not len(numbers) or numbers.max() < _KNOWN:
        return _table().take(pa.array(numbers))
    return pa.array(map(_varint, numbers.tolist()), _BYTES)
