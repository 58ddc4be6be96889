"""`export`: a trained model as a Hugging Face folder with its score contract."""

import dataclasses
import json
import pathlib
import unicodedata
from collections.abc import Sequence

import jax
import numpy as np
import tokenizers
from jax.sharding import Mesh

import ranker
from ranker import config, manifest, sharding, storage
from ranker.data.pipeline import ListEncoder
from ranker.data.prepare import Prepared, prepare
from ranker.data.records import Document, RankedList
from ranker.data.text import Tokenizer, document_text
from ranker.models.huggingface import export_huggingface
from ranker.serving import contract
from ranker.serving.contract import Contract, Golden
from ranker.training.scorer import make_score, score_lists
from ranker.training.state import make_network
from ranker.training.trained import Trained, load_trained

_SPLITS = ("dev", "train", "unlabelled")  # that golden pairs are drawn from
_LISTS = 40  # of each split that the sample is drawn from, at most
_DOCUMENTS = 5  # of each list, at most
_ROWS = 32  # pairs a batch
_GOLDEN = {"short": 3, "cut": 3, "other script": 3}  # pairs of each kind
_COUNT = 16  # golden pairs; the rest are spread over all scores
TRUNCATION = (
    "the last tokens of the second text are cut; never the first text, nor the suffix"
)


def export(
    settings: config.Export, workdir: pathlib.Path, *, replace: bool = False
) -> pathlib.Path:
    """Writes WORKDIR/FOLDER, which stock tools load as it is; returns the folder.

    Adapters are merged. A ranker gets a contract: how it is fed, and golden scores. A
    language model (after continued pre-training) has no score, and gets none.

    Raises:
      ConfigError, DataError, StageError: with what is wrong and what to do.
    """
    prepared = prepare(settings.data, settings.text, workdir, replace=replace)
    kinds, by = ("cpt", "sft", "distill"), "the export stage"
    parent = manifest.require(workdir, settings.stage, kinds=kinds, by=by)
    folder = workdir / settings.folder
    account = manifest.Manifest(
        kind="export",
        settings={},
        inputs={
            **prepared.inputs("corpus", *(f"lists/{one}" for one in _SPLITS)),
            settings.stage: parent.key,
        },
    )
    with manifest.claim(folder, account, replace=replace) as todo:
        if todo:
            mesh = sharding.make_mesh(settings.mesh)
            trained = load_trained(
                workdir, settings.stage, prepared, mesh, kinds=kinds, by=by
            )
            write_folder(folder, trained, prepared, mesh)
            account.finish(
                folder,
                stage=settings.stage,
                length=trained.length,
                files=manifest.outputs(folder),
            )
            print(f"[export] {settings.stage} is in {folder}", flush=True)
    return folder


def write_folder(
    folder: pathlib.Path, trained: Trained, prepared: Prepared, mesh: Mesh
) -> None:
    """Writes weights, tokenizer and, for a ranker, the contract."""
    scores = trained.account.kind != "cpt"
    (folder / contract.FILE).unlink(missing_ok=True)
    export_huggingface(
        folder,
        trained.model,
        trained.params,
        head="score" if scores else "language",
        tokenizer=prepared.tokenizer_folder(trained.role),
        length=trained.length,
    )
    if scores:
        tokenizer = prepared.tokenizer(trained.role)
        if tokenizer.words is not None:
            frame_pairs(folder, tokenizer)
        make_contract(folder, trained, prepared, mesh).save(folder)


def frame_pairs(folder: pathlib.Path, tokenizer: Tokenizer) -> None:
    """Has a decoder's exported tokenizer put the template's ids around a pair.

    A decoder's own tokenizer joins two texts without a word between or an end. Then
    stock tools that are given the contract's `query` and `document` read what was
    trained on. The padding must not be the end token: stock models look for the last
    token that is no padding.
    """
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text())
    backend = tokenizers.Tokenizer.from_file(str(path))
    parts = {
        "[PREFIX]": tokenizer.head,
        "[MIDDLE]": tokenizer.middle,
        "[SUFFIX]": tokenizer.tail,
    }
    special = {}
    for name, ids in parts.items():
        if ids:
            words = [backend.id_to_token(token) for token in ids]
            special[name] = {"id": name, "ids": ids, "tokens": words}

    def item(name: str, type_id: int = 0) -> list[dict]:
        if name in ("A", "B"):
            return [{"Sequence": {"id": name, "type_id": type_id}}]
        return [{"SpecialToken": {"id": name, "type_id": 0}}] if name in special else []

    described["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [*item("[PREFIX]"), *item("A"), *item("[SUFFIX]")],
        "pair": [
            *item("[PREFIX]"),
            *item("A"),
            *item("[MIDDLE]"),
            *item("B"),
            *item("[SUFFIX]"),
        ],
        "special_tokens": special,
    }
    storage.write_json(path, described, indent=None)
    path = folder / "tokenizer_config.json"
    described = json.loads(path.read_text())
    # The class of a family would put its own special tokens in.
    described["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in ("add_bos_token", "add_eos_token", "auto_map"):
        described.pop(name, None)
    model_path = folder / "config.json"
    model = json.loads(model_path.read_text())
    if model.get("pad_token_id") == tokenizer.end:
        pad = next(i for i in range(tokenizer.vocab_size) if i != tokenizer.end)
        model["pad_token_id"] = pad
        storage.write_json(model_path, model, indent=2)
        described["pad_token"] = backend.id_to_token(pad)
    described["padding_side"] = "right"
    storage.write_json(path, described, indent=2)


def make_contract(
    folder: pathlib.Path, trained: Trained, prepared: Prepared, mesh: Mesh
) -> Contract:
    """The contract of an exported ranker; golden scores are computed in float32."""
    tokenizer = prepared.tokenizer(trained.role)
    pairs = draw_pairs(prepared, tokenizer, trained.length)
    scores = _score(pairs, trained, tokenizer, mesh)
    decoder = isinstance(trained.model, config.Decoder)
    parts = [*tokenizer.head, *tokenizer.middle, *tokenizer.tail]
    words = tokenizer.words
    described = json.loads((folder / "config.json").read_text())
    return Contract(
        version=contract.VERSION,
        made_by=f"ranker {ranker.__version__}",
        stage=trained.name,
        template=tokenizer.template,
        template_digest=tokenizer.template_digest,
        query=words.query if words else "{query}",
        document=words.document if words else "{both}",
        prefix=tokenizer.head,
        middle=tokenizer.middle,
        suffix=tokenizer.tail,
        special_tokens={str(i): tokenizer.backend.id_to_token(i) or "" for i in parts},
        types=list(tokenizer.type_ids),
        padding=described["pad_token_id"],
        length=trained.length,
        truncation=TRUNCATION,
        tokenizer_digest=Tokenizer(folder, tokenizer.template).digest,
        pooling=_pooling(trained.model),
        head="dense" if decoder else "pooler and dense",
        activation="none",
        dtype="float32",
        model=json.loads(json.dumps(config.to_dict(trained.model))),
        tensors=contract.tensor_digests(folder),
        scores={
            "pairs": len(scores),
            "mean": float(scores.mean(dtype=np.float64)),
            "std": float(scores.std(dtype=np.float64)),
            "min": float(scores.min()),
            "max": float(scores.max()),
        },
        golden=choose_golden(pairs, scores, tokenizer, trained.length),
    )


Pair = tuple[str, Document]


def draw_pairs(prepared: Prepared, tokenizer: Tokenizer, length: int) -> list[Pair]:
    """Pairs of all the prepared data, evenly spaced, and some that are hard to serve.

    Data may have no short text, none over the length, and none in another script. So a
    few texts of the data are shortened, repeated, and have such words added.
    """
    corpus, pairs = prepared.corpus(), []
    for split in _SPLITS:
        lists = prepared.lists(split)
        for number in _spaced(len(lists), _LISTS):
            record: RankedList = lists[number]
            rows = record.documents
            pairs += [
                (record.query, corpus[int(rows[place])])
                for place in _spaced(len(rows), _DOCUMENTS)
            ]
    pairs = [pair for pair in pairs if _fits(pair, tokenizer, length)]

    def changed(pair: Pair, text: str) -> Pair:
        return pair[0], dataclasses.replace(pair[1], text=text)

    short = [
        (query, Document("", "", " ".join(document_text(one, "pair").split()[:3])))
        for query, one in pairs[: _GOLDEN["short"]]
    ]
    long = [
        changed(pair, (f"{document_text(pair[1], 'pair')} " * length)[: 20 * length])
        for pair in pairs[: _GOLDEN["cut"]]
    ]
    foreign = [
        changed(pair, f"{words} {pair[1].text}".strip())
        for pair, words in zip(pairs, _OTHER_SCRIPTS, strict=False)
    ]
    return [*pairs, *short, *long, *foreign]


def _spaced(size: int, count: int) -> list[int]:
    """At most `count` places out of `size`, evenly spaced."""
    return np.unique(np.linspace(0, size - 1, min(size, count), dtype=int)).tolist()


def _pooling(model: config.Decoder | config.Encoder) -> str:
    if isinstance(model, config.Decoder):
        return "last token"
    return "first token" if model.pooling == "cls" else "mean of all tokens"


_OTHER_SCRIPTS = ("Дешёвые билеты в Рим", "東京の天気 مرحبا", "Ünïcödé ½ 😀 हिन्दी")


def _fits(pair: Pair, tokenizer: Tokenizer, length: int) -> bool:
    """Whether the query leaves room for a document."""
    [prefix] = tokenizer.queries([pair[0]])
    return len(prefix) + len(tokenizer.tail) < length


def _score(
    pairs: Sequence[Pair], trained: Trained, tokenizer: Tokenizer, mesh: Mesh
) -> np.ndarray:
    """Scores of the pairs as stock tools compute them: all in float32."""
    exact = dataclasses.replace(trained.model, dtype="float32")
    network = make_network(exact, trained.vocab_size, "score", mesh)
    zero = np.zeros(1, np.float32)
    lists = [
        RankedList(
            "golden", query, np.array([i]), zero, zero, (), np.zeros(0, np.int32)
        )
        for i, (query, _) in enumerate(pairs)
    ]
    documents = [document for _, document in pairs]
    encoder = ListEncoder(documents, tokenizer, trained.length)
    with jax.default_matmul_precision("highest"):
        score = make_score(network)
        return score_lists(score, trained.params, network, lists, encoder, rows=_ROWS)


def choose_golden(
    pairs: Sequence[Pair], scores: np.ndarray, tokenizer: Tokenizer, length: int
) -> list[Golden]:
    """Sixteen pairs: short, cut and in other scripts, the rest over all scores."""
    sizes = []
    for query, document in pairs:
        [prefix] = tokenizer.queries([query])
        [ids] = tokenizer.documents([document])
        sizes.append(len(prefix) + len(ids) + len(tokenizer.tail))
    kinds = {
        "short": [i for i in np.argsort(sizes, kind="stable")],
        "cut": [i for i, size in enumerate(sizes) if size > length],
        "other script": [i for i, pair in enumerate(pairs) if _other_script(pair)],
    }
    chosen: dict[int, str] = {}
    for kind, count in _GOLDEN.items():
        free = [int(i) for i in kinds[kind] if i not in chosen]
        chosen |= dict.fromkeys(free[:count], kind)
    order = [int(i) for i in np.argsort(scores, kind="stable") if i not in chosen]
    wanted = min(_COUNT - len(chosen), len(order))
    places = np.linspace(0, len(order) - 1, wanted, dtype=int) if wanted else []
    chosen |= {order[place]: "spread" for place in places}
    golden = []
    for i in sorted(chosen):
        query, document = pairs[i]
        [prefix] = tokenizer.queries([query])
        [ids] = tokenizer.documents([document])
        segment = tokenizer.segment(prefix, ids, length)
        golden.append(
            Golden(
                kind=chosen[i],
                query=query,
                title=document.title,
                text=document.text,
                tokens=segment.tokens,
                document=segment.document,
                score=float(scores[i]),
            )
        )
    return golden


def _other_script(pair: Pair) -> bool:
    """Whether a pair has letters outside Latin."""
    query, document = pair
    letters = (c for c in f"{query}{document.title}{document.text}" if c.isalpha())
    return any(not unicodedata.name(c, "").startswith("LATIN") for c in letters)
