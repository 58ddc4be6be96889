"""What the processes of one run agree on: the first decides, the others are told.

Only this module asks about other processes. They talk through jax's coordination
service, never through files: locks do not reach other hosts, and a mounted bucket shows
a file late. A call of this module is one that every process makes, in the same order.
"""

import itertools
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from ranker.errors import StageError

T = TypeVar("T")

_TIMEOUT = 1000 * 60 * 60 * 24 * 7  # ms: as long as preparing a large collection takes
_numbers = itertools.count()  # of what is agreed on; equal on every process
_alone = 0  # calls of `first` that this process is inside of


def index() -> int:
    """Number of this process, from 0."""
    return jax.process_index()


def count() -> int:
    """Number of processes of the run."""
    return jax.process_count()


def leads() -> bool:
    """Whether this is the first process, which decides and writes for all."""
    return index() == 0


def first(call: Callable[[], T]) -> T:
    """What the call returns or raises in the first process; the others do not make it.

    Within the call another `first` is an ordinary call.

    Args:
      call: its result can be pickled.
    """
    global _alone
    if count() == 1 or _alone:
        return call()
    key = f"ranker/{next(_numbers)}"
    if not leads():
        return _told(_wait_for(key))
    _alone += 1
    outcome = _outcome(call)
    _alone -= 1
    _client().key_value_set_bytes(key, _packed(outcome))
    return _result(outcome)


def together(call: Callable[[], T]) -> list[T]:
    """What the call returns in each process, once all have made it.

    Raises:
      what the call raised in the first process in which it did, in all of them.
    """
    if count() == 1 or _alone:
        return [call()]
    key = f"ranker/{next(_numbers)}"
    return exchange(key, call)


def exchange(key: str, call: Callable[[], T]) -> list[T]:
    """As `together`, in a thread: `key` is in place of the order of the calls."""
    if count() == 1:
        return [call()]
    mine = _outcome(call)
    _client().key_value_set_bytes(f"{key}/{index()}", _packed(mine))
    results: list[T] = []
    for other in range(count()):
        if other == index():
            results.append(_result(mine))
        else:
            name = f"{key}/{other}"
            results.append(
                _told(_client().blocking_key_value_get_bytes(name, _TIMEOUT))
            )
    return results


def channel() -> str:
    """A new prefix for the keys of `exchange`."""
    return f"ranker/{next(_numbers)}"


def meet() -> None:
    """Waits for all processes."""
    together(lambda: None)


def _client() -> Any:
    # The service that jax's own checkpoints and preemption notices go through.
    from jax._src import distributed

    client = distributed.global_state.client
    assert client is not None, "several processes without jax.distributed.initialize"
    return client


def _wait_for(key: str) -> bytes:
    return _client().blocking_key_value_get_bytes(key, _TIMEOUT)


def _outcome(call: Callable[[], Any]) -> tuple[bool, Any]:
    try:
        return True, call()
    except Exception as error:
        return False, error


def _packed(outcome: tuple[bool, Any]) -> bytes:
    sound, value = outcome
    try:
        packed = pickle.dumps(outcome)
        pickle.loads(packed)  # not every exception comes back from its pickle
        return packed
    except Exception:
        if sound:
            raise
        return pickle.dumps((False, StageError(f"{type(value).__name__}: {value}")))


def _told(packed: bytes) -> Any:
    return _result(pickle.loads(packed))


def _result(outcome: tuple[bool, Any]) -> Any:
    sound, value = outcome
    if sound:
        return value
    raise value
