"""Distil a large language model's ranking skill into a BERT that is cheap to serve."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ranker.serving.library import LoadedRanker

__version__ = "0.1.0"


def load(path: "str | os.PathLike[str]", **options: Any) -> "LoadedRanker":
    """Loads a ranker: an export with its contract, or any checkpoint that ranks.

    The work is in `ranker.serving.library.load`, which names the options; it is
    imported here, so that `import ranker` takes no time and starts no backend.

    Args:
      path: folder, or name on the hub.
      **options: revision, template, length.

    Raises:
      UserError: for what cannot be read, saying what was found and what to do.
    """
    from ranker.serving import library

    return library.load(os.fspath(path), **options)
