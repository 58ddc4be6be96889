"""Golden pairs and the contract that holds them: written beside exported weights."""

import dataclasses
import json
import pathlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers

import ranker
from ranker import config, storage
from ranker.data.backends import choose_padding, load_tokenizer
from ranker.data.text import Segment
from ranker.errors import DataError
from ranker.serving import contract
from ranker.serving.contract import Contract, Golden
from ranker.serving.frame import Frame, PairEncoder, PairTexts

TRUNCATION = (
    "the last tokens of the second text are cut; never the first text, nor the suffix"
)
_KINDS = ("short", "cut", "other script", "padding", "punctuation")
_PER_KIND = 2  # golden pairs of each of these
_COUNT = 16  # golden pairs; the rest are spread over all scores
_SHORT = 3  # words of a short text
# Letters of other scripts, and punctuation that a changed pre-tokenizer would join.
_OTHER_SCRIPTS = ("Дешёвые билеты в Рим", "東京の天気 مرحبا", "Ünïcödé ½ 😀 हिन्दी")
_PUNCTUATION = ("really?! (see: e.g. U.S.A...) -- 50%%", "what??  C++/C#, 'a''b'!!")

# Stock models of these count positions over all tokens but padding, so that a text with
# the padding token's own text is read otherwise than in training.
_COUNT_PADDING = ("roberta", "xlm-roberta", "camembert", "data2vec-text", "mpnet")

GoldenPair = tuple[str, PairTexts]
ScoreSegments = Callable[[Sequence[Segment]], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a contract says of a model, beside scores."""

    stage: str  # that trained the weights
    template: str  # name; see ranker/data/text.py
    model: config.Decoder | config.Encoder
    frame: Frame


def frame_pairs(folder: pathlib.Path, frame: Frame) -> None:
    """Has a decoder's exported tokenizer put the frame's ids around a pair.

    A decoder's own tokenizer joins two texts without a word between or an end. Then
    stock tools that are given the contract's `query` and `document` read what was
    trained on. The padding must not be the end token: stock models look for the last
    token other than padding.
    """
    if not frame.last:
        return
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text())
    backend = tokenizers.Tokenizer.from_file(str(path))
    parts = {
        "[PREFIX]": frame.prefix,
        "[MIDDLE]": frame.middle,
        "[SUFFIX]": frame.suffix,
    }
    special = {}
    for name, ids in parts.items():
        if ids:
            words = [backend.id_to_token(token) for token in ids]
            special[name] = {"id": name, "ids": list(ids), "tokens": words}

    def item(name: str) -> list[dict]:
        if name in ("A", "B"):
            return [{"Sequence": {"id": name, "type_id": 0}}]
        return [{"SpecialToken": {"id": name, "type_id": 0}}] if name in special else []

    single = ("[PREFIX]", "A", "[SUFFIX]")
    pair = ("[PREFIX]", "A", "[MIDDLE]", "B", "[SUFFIX]")
    described["post_processor"] = {
        "type": "TemplateProcessing",
        "single": sum(map(item, single), []),
        "pair": sum(map(item, pair), []),
        "special_tokens": special,
    }
    backend = tokenizers.Tokenizer.from_str(json.dumps(described))
    storage.write_json(path, described, indent=None)
    path = folder / "tokenizer_config.json"
    described = json.loads(path.read_text())
    # The class of a family would put its own special tokens in.
    described["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in ("add_bos_token", "add_eos_token", "auto_map"):
        described.pop(name, None)
    model_path = folder / "config.json"
    model = json.loads(model_path.read_text())
    end = frame.suffix[-1] if frame.suffix else None
    if model.get("pad_token_id") == end:
        pad = choose_padding(backend, frame.suffix, model["vocab_size"])
        backend.save(str(folder / "tokenizer.json"))
        model["pad_token_id"] = pad
        storage.write_json(model_path, model, indent=2)
        described["pad_token"] = backend.id_to_token(pad)
    described["padding_side"] = "right"
    storage.write_json(path, described, indent=2)


def write_contract(
    folder: pathlib.Path,
    about: ModelFacts,
    pairs: Sequence[GoldenPair],
    score: ScoreSegments,
) -> Contract:
    """Writes the contract of an exported ranker.

    Args:
      folder: with weights, config.json and tokenizer, as they are served.
      about: the model.
      pairs: that golden pairs are chosen from, and hard ones made from.
      score: raw scores of rows, in float32.

    Raises:
      DataError: where no query leaves room for a document.
    """
    frame = about.frame
    encoder = PairEncoder(frame, load_tokenizer(folder).backend_tokenizer)
    described = json.loads((folder / "config.json").read_text())
    padding = encoder.backend.id_to_token(described["pad_token_id"]) or ""
    if described["model_type"] in _COUNT_PADDING:
        padding = ""
    pairs = [pair for pair in pairs if encoder.fits(pair[0])]
    if not pairs:
        raise DataError(
            f"no query leaves room for a document in {frame.length} tokens, so there "
            "are not golden pairs; raise the length"
        )
    pairs = [*pairs, *hard_pairs(pairs, padding, frame.length)]
    segments = encoder.pairs(pairs)
    scores = np.asarray(score(segments), np.float32)
    parts = [*frame.prefix, *frame.middle, *frame.suffix]
    around = (about.template, frame.query, frame.document, parts)
    found = Contract(
        version=contract.VERSION,
        made_by=f"ranker {ranker.__version__}",
        stage=about.stage,
        template=about.template,
        template_digest=storage.digest(around),
        query=frame.query,
        document=frame.document,
        prefix=list(frame.prefix),
        middle=list(frame.middle),
        suffix=list(frame.suffix),
        special_tokens={str(i): encoder.backend.id_to_token(i) or "" for i in parts},
        types=list(frame.types),
        padding=described["pad_token_id"],
        length=frame.length,
        passages=dataclasses.asdict(frame.passages) if frame.passages.most > 1 else {},
        truncation=TRUNCATION,
        tokenizer_digest=encoder.digest,
        pooling=_pooling(about.model),
        head=_head(about.model),
        activation="none",
        dtype="float32",
        model=json.loads(json.dumps(config.to_dict(about.model))),
        tensors=contract.tensor_digests(folder),
        scores={
            "pairs": len(scores),
            "mean": float(scores.mean(dtype=np.float64)),
            "std": float(scores.std(dtype=np.float64)),
            "min": float(scores.min()),
            "max": float(scores.max()),
        },
        golden=choose_golden(pairs, scores, segments, _kinds(pairs, encoder, padding)),
    )
    found.save(folder)
    return found


def _head(model: config.Decoder | config.Encoder) -> str:
    if isinstance(model, config.Encoder):
        return "pooler and dense"
    return f"expected grade of {model.grades}" if model.grades else "dense"


def _pooling(model: config.Decoder | config.Encoder) -> str:
    return {
        "cls": "first token",
        "last": "last token",
        "mean": "mean of all tokens",
        "late": "mean of what the head makes of all tokens",
    }[model.pooling]


# --- pairs ----------------------------------------------------------------------------

_SENTENCES = (
    ("planets seen without a telescope", "Mars looks red because of its iron dust."),
    (
        "how long does bread dough rest",
        "Let the dough rest for an hour, then shape it.",
    ),
    (
        "who wrote the first encyclopedia",
        "Pliny the Elder described the natural world.",
    ),
    ("cheap trains to the coast", "Fares are lowest on weekdays before nine o'clock."),
    ("why is the sea salty", "Rivers carry dissolved minerals from rocks to the sea."),
    ("symptoms of iron deficiency", "Tiredness and pale skin are common early signs."),
    ("tune a guitar", "Turn the peg until the string matches the pitch of the fork."),
    ("bridges", "The longest span of its time hung from cables of twisted steel wire."),
    ("capital of Iceland", "Reykjavik lies on the shore of a wide bay in the west."),
    ("what do owls eat", "At night they hunt mice, voles and sometimes small birds."),
    ("a", "b"),
)


def texts(given: Sequence[GoldenPair], before: Contract | None) -> list[GoldenPair]:
    """Pairs for golden scores: those given, a contract's, or this package's own."""
    if given:
        return list(given)
    if before:
        return [(one.query, (one.title, one.text)) for one in before.golden]
    queries, documents = zip(*_SENTENCES, strict=True)
    turned = [*documents[3:], *documents[:3]]
    return [
        (query, ("", text))
        for side in (documents, turned)
        for query, text in zip(queries, side, strict=True)
    ]


def hard_pairs(
    pairs: Sequence[GoldenPair], padding: str, length: int
) -> list[GoldenPair]:
    """Pairs that are hard to serve, made from the first of `pairs`.

    Data may have no short text, none over the length, none in another script, none that
    spells the padding token, and no doubled punctuation.
    """

    def words(texts: PairTexts) -> list[str]:
        return " ".join(texts).split()

    made: list[GoldenPair] = []
    for number, (query, both) in enumerate(pairs[: _PER_KIND + 1]):
        title, text = both
        joined = " ".join(words(both))
        made.append((query, ("", " ".join(words(both)[:_SHORT]))))
        made.append((query, (title, (f"{joined} " * length)[: 20 * length])))
        script = _OTHER_SCRIPTS[number % len(_OTHER_SCRIPTS)]
        made.append((query, (title, f"{script} {text}".strip())))
        marks = _PUNCTUATION[number % len(_PUNCTUATION)]
        made.append((query, (title, f"{marks} {text}".strip())))
        if padding:
            first, *rest = words(both) or [""]
            made.append((query, ("", " ".join([first, padding, padding, *rest, "."]))))
    return made


def _kinds(
    pairs: Sequence[GoldenPair], encoder: PairEncoder, padding: str
) -> dict[str, list[int]]:
    """The pairs of each kind, the clearest first."""
    sizes = encoder.sizes(pairs)
    whole = [" ".join((query, *both)) for query, both in pairs]
    length = encoder.frame.length
    return {
        "short": np.argsort(sizes, kind="stable").tolist(),
        "cut": [i for i, size in enumerate(sizes) if size > length],
        "other script": [i for i, text in enumerate(whole) if _other_script(text)],
        "padding": [i for i, text in enumerate(whole) if padding and padding in text],
        "punctuation": [
            i for i, text in enumerate(whole) if any(m in text for m in _PUNCTUATION)
        ],
    }


def choose_golden(
    pairs: Sequence[GoldenPair],
    scores: np.ndarray,
    segments: Sequence[Segment],
    kinds: dict[str, list[int]],
) -> list[Golden]:
    """Sixteen pairs: some of each kind that is hard to serve, the rest over all scores.

    Args:
      pairs: to choose from.
      scores: of the pairs.
      segments: rows of the pairs.
      kinds: places of the pairs of each kind, see `_kinds`.
    """
    chosen: dict[int, str] = {}
    for kind in reversed(_KINDS):  # the rarest first: every text could be short
        free = [i for i in kinds[kind] if i not in chosen]
        chosen |= dict.fromkeys(free[:_PER_KIND], kind)
    order = [int(i) for i in np.argsort(scores, kind="stable") if i not in chosen]
    wanted = min(_COUNT - len(chosen), len(order))
    places = np.linspace(0, len(order) - 1, wanted, dtype=int) if wanted else []
    chosen |= {order[place]: "spread" for place in places}
    return [
        Golden(
            kind=chosen[i],
            query=pairs[i][0],
            title=pairs[i][1][0],
            text=pairs[i][1][1],
            tokens=[int(token) for token in segments[i].tokens],
            document=segments[i].document,
            score=float(scores[i]),
        )
        for i in sorted(chosen)
    ]


def _other_script(text: str) -> bool:
    """Whether a text has letters outside Latin."""
    letters = (c for c in text if c.isalpha())
    return any(not unicodedata.name(c, "").startswith("LATIN") for c in letters)
