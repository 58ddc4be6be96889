"""What an exported ranker promises: how text is fed, and the scores that come out.

The file lies beside the weights and says everything that a server must do, with golden
pairs to prove that it does. See docs/contract.md.
"""

import dataclasses
import hashlib
import json
import pathlib
from dataclasses import dataclass
from typing import Any

from ranker import config
from ranker.errors import ContractError
from ranker.manifests import check_types
from ranker.storage import read_json, write_json

FILE = "ranker_contract.json"
VERSION = 1
_BROKEN = (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError)
_CHUNK = 1 << 24  # bytes read at once


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A pair of texts, what the model reads of it, and its score."""

    kind: str  # short, cut, other script, or spread (over all scores)
    query: str
    title: str
    text: str
    tokens: list[int]  # special tokens included, as cut
    document: int  # place of the document's first token
    score: float


@dataclass(frozen=True, kw_only=True)
class Contract:
    """How a folder's model is to be fed and read."""

    version: int  # of this file's format
    made_by: str  # package and version
    stage: str  # that trained the weights
    template: str  # name; see ranker/data/text.py
    template_digest: str  # of its words and special tokens
    query: str  # first text of the pair that a tokenizer is given
    document: str  # second text; {both}: title and text, those that are not empty
    prefix: list[int]  # ids before the first text
    middle: list[int]  # ids between the texts
    suffix: list[int]  # ids after the second text, never cut
    special_tokens: dict[str, str]  # id -> token, of these three
    types: list[int]  # token types of the first text and of the second
    padding: int  # id; padding is on the right and is not attended to
    length: int  # tokens a pair, special tokens included
    truncation: str  # a sentence
    tokenizer_digest: str
    pooling: str  # first token, last token, or mean of all tokens
    head: str  # what gives the score
    activation: str  # on the score: none
    dtype: str  # of weights and computation that gave the golden scores
    model: dict[str, Any]  # architecture
    tensors: dict[str, str]  # name -> dtype and digest
    scores: dict[str, float]  # pairs, mean, std, min, max over a sample
    golden: list[Golden]
    # Precision -> what its ranking quality was measured to be; see precision.py.
    precisions: dict[str, Any] = dataclasses.field(default_factory=dict)
    # How a document longer than a pair is read: passages at most, tokens that they
    # share, and a document's score of theirs (max, mean); empty: its beginning alone.
    passages: dict[str, Any] = dataclasses.field(default_factory=dict)
    # Raw score to a probability: method and its numbers; empty: a sigmoid.
    calibration: dict[str, Any] = dataclasses.field(default_factory=dict)

    def save(self, folder: pathlib.Path) -> None:
        """Writes the contract into the model's folder, all or nothing."""
        write_json(folder / FILE, dataclasses.asdict(self))


def load_contract(folder: pathlib.Path) -> Contract:
    """The contract of a folder.

    Raises:
      ContractError: when there is none, or none that this version reads.
    """
    path = folder / FILE
    again = "export the stage again with python -m ranker.export"
    if not folder.is_dir():
        raise ContractError(f"{folder}: no such folder")
    if not path.is_file():
        if below := sorted(str(one.parent) for one in folder.glob(f"*/{FILE}")):
            raise ContractError(
                f"{folder} has no {FILE}; did you mean {' or '.join(below[:3])}?"
            )
        raise ContractError(
            f"{folder} has no {FILE}: it is not an export of this package; "
            f"{again}, or check it --against a folder that has one"
        )
    try:
        fields = read_json(path)
    except (ValueError, OSError) as error:
        raise ContractError(f"{path} is not JSON ({error}); {again}") from error
    found = fields.get("version") if isinstance(fields, dict) else None
    if found != VERSION:
        raise ContractError(
            f"{path} has the version {found!r}, and this package reads {VERSION}; "
            f"{again}, or check with the package that made it"
        )
    try:
        fields["golden"] = [Golden(**one) for one in fields["golden"]]
        contract = Contract(**fields)
        passages = config.Passages(**contract.passages)
        for one in (contract, passages, *contract.golden):
            check_types(one)
    except (TypeError, KeyError, ValueError) as error:
        said = str(error)[:300]
        raise ContractError(f"{path} is not whole ({said}); {again}") from error
    if not contract.golden:
        raise ContractError(f"{path} has no golden pairs; {again}")
    return contract


def need_one_passage(contract: Contract, folder: pathlib.Path, by: str) -> None:
    """Refuses a contract by which long documents are read in several passages.

    Raises:
      ContractError: naming `by`, which reads a document's beginning alone.
    """
    if contract.passages:
        raise ContractError(
            f"{folder}: long documents are scored by passages "
            f"({contract.passages['score']} over {contract.passages['most']} at most), "
            f"and {by} reads one; score with ranker.load, or train and export with "
            "text.student_passages=1"
        )


def file_digest(path: pathlib.Path) -> str:
    """Digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def tensor_digests(folder: pathlib.Path) -> dict[str, str]:
    """Name of every tensor in a folder's safetensors -> "DTYPE:DIGEST of its bytes".

    Those of modules, each in a folder of its own, have the folder's name before theirs.

    Raises:
      ContractError: when a file is not safetensors, or is cut.
    """
    found: dict[str, str] = {}
    modules = sorted(folder.glob("[0-9]*_*/*.safetensors"))
    for path in [*sorted(folder.glob("*.safetensors")), *modules]:
        inside = "" if path.parent == folder else f"{path.parent.name}/"
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                whole = path.stat().st_size
                if size > whole - 8:
                    raise ValueError(f"a header of {size} bytes in a file of {whole}")
                header = json.loads(file.read(size))
                header.pop("__metadata__", None)
                for name, one in header.items():
                    begin, end = one["data_offsets"]
                    if not 0 <= begin <= end <= whole - 8 - size:
                        raise ValueError(f"{name} lies outside the file")
                    file.seek(8 + size + begin)
                    digest = _digest(file, end - begin)
                    found[inside + name] = f"{one['dtype']}:{digest}"
        except _BROKEN as error:
            said = str(error)[:300]
            raise ContractError(
                f"{path} is not a valid safetensors file: {said}"
            ) from error
    return dict(sorted(found.items()))


def _digest(file: Any, size: int) -> str:
    digest = hashlib.sha256()
    while size:
        part = file.read(min(size, _CHUNK))
        if not part:
            raise ValueError(f"it ends {size} bytes early")
        digest.update(part)
        size -= len(part)
    return digest.hexdigest()[:16]
