"""Published kinds of rerankers as teachers, as they are; and the way to a student."""

import dataclasses
import json
import pathlib
import runpy

import numpy as np
import parity_helpers as helpers
import pytest
import tokenizers
import torch
import transformers

from ranker import config, errors, manifests, run, sharding
from ranker.data.prepare import prepare
from ranker.data.records import Document
from ranker.data.text import TEMPLATES, Tokenizer, train_bpe, train_wordpiece, words_of
from ranker.errors import DataError
from ranker.models.huggingface import ModelError, flat, open_checkpoint
from ranker.training.score import score_chunks
from ranker.training.scorer import make_score, score_lists
from ranker.training.train import adopt, train
from ranker.training.trained import load_trained

ROOT = pathlib.Path(__file__).resolve().parents[2]
V = 320
QWEN_WORDS = ("<|im_start|>", "<|im_end|>", "yes", "no")


def save_qwen(folder):
    """A tiny random Qwen3ForCausalLM, and a byte-level BPE that splits as Qwen's."""
    texts = [TEMPLATES["qwen3_reranker"].begin, "bota kela mifo rudi title"] * 3
    train_bpe(iter(texts), V - 10, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    words = [tokenizers.AddedToken(word, single_word=True) for word in QWEN_WORDS[2:]]
    tokenizer.add_tokens([*QWEN_WORDS[:2], *words])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    settings = transformers.Qwen3Config(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    model = transformers.Qwen3ForCausalLM(settings).eval()
    model.save_pretrained(folder)
    return model, tokenizer


def save_student(folder, family):
    """A tiny random encoder of a published class, with its kind of tokenizer."""
    words = dict(vocab_size=300, hidden_size=16, intermediate_size=32)
    sizes = dict(num_hidden_layers=4, num_attention_heads=2, num_labels=1)
    if family == "Bert":
        train_wordpiece(iter(["bota kela mifo rudi"] * 3), 90, folder)
    else:
        words |= dict(pad_token_id=1, type_vocab_size=1)
        save_roberta_tokenizer(folder)
    settings = getattr(transformers, f"{family}Config")(**words, **sizes)
    model = getattr(transformers, f"{family}ForSequenceClassification")(settings)
    model.save_pretrained(folder)


def save_roberta_tokenizer(folder):
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [(word, 0.0) for word in specials]
    pieces += [(f"{space}{x}", -3.0) for x in letters for space in ("", "▁")]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram([*pieces, ("▁", -4)], 3))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.post_processor = tokenizers.processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0)
    )
    names = dict(pad="<pad>", unk="<unk>", cls="<s>", sep="</s>", bos="<s>", eos="</s>")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{k}_token": v for k, v in names.items()}
    ).save_pretrained(folder)


def published_scores(model, tokenizer, pairs):
    """The score of the model card of Qwen3-Reranker, before its softmax."""
    words = TEMPLATES["qwen3_reranker"]
    prefix, suffix = words.begin, "".join(words.end)
    scores = []
    for query, document in pairs:
        text = (
            "<Instruct>: Given a web search query, retrieve relevant passages that "
            f"answer the query\n<Query>: {query}\n<Document>: {document}"
        )
        ids = sum(
            (
                tokenizer(part, add_special_tokens=False)["input_ids"]
                for part in (prefix, text, suffix)
            ),
            [],
        )
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
        scores.append(float(logits[yes] - logits[no]))
    return np.array(scores)


def qwen_to_bert(folder, family):
    path = ROOT / "configs" / "qwen3_reranker_to_bert.py"
    settings = runpy.run_path(str(path))["get_config"]("smoke")
    keep = settings.student.keep_layers if family == "Bert" else ""
    return dataclasses.replace(
        settings,
        teacher=config.Pretrained(path=str(folder / "teacher")),
        student=config.Pretrained(path=str(folder / "student"), keep_layers=keep),
        text=dataclasses.replace(settings.text, teacher_length=384),
        compare=("student_labels",) if family == "Bert" else (),
    )


@pytest.mark.parametrize("family", ["Bert", "XLMRoberta"])
def test_qwen3_reranker_to_a_student(family, tmp_path):
    qwen, tokenizer = save_qwen(tmp_path / "teacher")
    save_student(tmp_path / "student", family)
    settings = qwen_to_bert(tmp_path, family)
    workdir = tmp_path / "run"
    run.run(settings, workdir)
    # The teacher's scores are those of its model card.
    prepared = prepare(settings.data, settings.reading, workdir)
    mesh = sharding.make_mesh(settings.mesh)
    lists, corpus = prepared.lists("unlabelled"), prepared.corpus()
    pairs = [
        (lists[i].query, f"{corpus[row].title} {corpus[row].text}".strip())
        for i in range(len(lists))
        for row in lists[i].documents.tolist()
    ]
    expected = published_scores(qwen, tokenizer, pairs)
    np.testing.assert_allclose(scores_of("sft", workdir, prepared), expected, atol=1e-4)
    assert np.ptp(expected) > 0.1
    facts = manifests.load_manifest(workdir / "scores").facts
    assert facts["min"] <= expected.min() + 1e-4 and facts["pairs"] == 2 * len(pairs)
    # It is not copied, and a changed checkpoint is not taken for it.
    size = sum(p.stat().st_size for p in (workdir / "sft").rglob("*") if p.is_file())
    assert size < 50_000
    # The student scores in stock tools as here.
    assert not mesh.empty
    from sentence_transformers import CrossEncoder

    stock = CrossEncoder(str(workdir / "export"), device="cpu")
    assert type(stock.model).__name__ == f"{family}ForSequenceClassification"
    assert stock.model.config.num_hidden_layers == (2 if family == "Bert" else 4)
    np.testing.assert_allclose(
        stock.predict(pairs, show_progress_bar=False),
        scores_of("distill", workdir, prepared),
        atol=1e-4,
    )
    if family == "Bert":
        with torch.no_grad():
            qwen.lm_head.weight.mul_(2.0)
        qwen.save_pretrained(tmp_path / "teacher")
        with pytest.raises(errors.StageError, match="has changed since; bring the"):
            scores_of("sft", workdir, prepared)


def scores_of(stage, workdir, prepared):
    """Our scores of the unlabelled queries' candidates."""
    mesh = sharding.make_mesh(config.Mesh())
    trained = load_trained(
        workdir, stage, prepared, mesh, kinds=("sft", "distill"), by="the test"
    )
    return score_lists(
        make_score(trained.network),
        trained.params,
        trained.network,
        prepared.lists("unlabelled"),
        trained.encoder(prepared),
        rows=16,
    )


def score_stage(folder, template, **fields):
    """The settings that score a checkpoint as it is, on the smallest world."""
    path = ROOT / "configs" / "qwen3_reranker_to_bert.py"
    data = runpy.run_path(str(path))["get_config"]("smoke").data
    text = config.Text(teacher_template=template, teacher_length=160)
    return config.Score(data=data, text=text, teacher=str(folder), rows=16, **fields)


def save_encoder_teacher(folder):
    save_student(folder, "Bert")
    return "pair", lambda query, document: (query, f"{document.title} {document.text}")


def save_decoder_teacher(folder):
    train_bpe(iter(["query document bota kela mifo rudi"] * 3), 300, folder)
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        num_labels=1,
        pad_token_id=0,
    )
    model = transformers.LlamaForSequenceClassification(settings)
    model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def tokens(query, document):
        text = f"query: {query} document: {document.title} {document.text}</s>"
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    return "query: {query}||| document: {title} {text}|||", tokens


@pytest.mark.parametrize("save", [save_encoder_teacher, save_decoder_teacher])
def test_a_checkpoint_scores_by_its_name(save, tmp_path, monkeypatch):
    template, form = save(tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    settings = score_stage("./teacher", template, splits=("unlabelled",))
    manifest = score_chunks(settings, tmp_path / "run")
    assert manifest.facts["teacher"] == "teacher"
    text = dataclasses.replace(settings.text, teacher_tokenizer="./teacher")
    prepared = prepare(settings.data, text, tmp_path / "run")
    lists, corpus = prepared.lists("unlabelled"), prepared.corpus()
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "teacher"
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "teacher")
    expected = []
    for i in range(len(lists)):
        for row in lists[i].documents.tolist():
            formed = form(lists[i].query, corpus[row])
            if isinstance(formed, tuple):
                inputs = tokenizer(*formed, return_tensors="pt")
            else:
                inputs = {"input_ids": torch.tensor([formed])}
            with torch.no_grad():
                expected.append(float(stock(**inputs).logits))
    found = scores_of("teacher", tmp_path / "run", prepared)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    facts = manifest.facts  # of the scores that were written
    written = [facts["pairs"], facts["min"], facts["mean"], facts["max"]]
    wanted = [len(expected), min(expected), np.mean(expected), max(expected)]
    np.testing.assert_allclose(written, wanted, atol=1e-4)
    # It is a stage like any other, and is not made twice.
    scores_again = score_chunks(settings, tmp_path / "run")
    assert scores_again.key == manifest.key
    with pytest.raises(ModelError, match="no such folder, and no hub name"):
        score_chunks(
            dataclasses.replace(settings, teacher="./no/where"), tmp_path / "two"
        )


def test_a_bfloat16_teacher_takes_half_the_memory(tmp_path):
    qwen, _ = save_qwen(tmp_path / "teacher")
    qwen.to(torch.bfloat16).save_pretrained(tmp_path / "teacher")
    settings = qwen_to_bert(tmp_path, "Bert")
    half = dataclasses.replace(settings.teacher, dtype="bfloat16")
    text = dataclasses.replace(settings.text, teacher_tokenizer=half.path)
    stage = dataclasses.replace(settings, teacher=half, student=BERT, text=text)
    stage = stage.stages()["sft"]
    adopt(stage, tmp_path / "run")
    prepared = prepare(stage.data, stage.text, tmp_path / "run")
    mesh = sharding.make_mesh(config.Mesh(tensor=2))
    trained = load_trained(
        tmp_path / "run", "sft", prepared, mesh, kinds=("sft",), by="the test"
    )
    _, whole, _ = helpers.load(tmp_path / "teacher", "language")
    for path, value in flat(trained.params):
        matrix = "layers" in path and "norm" not in path
        assert value.dtype == ("bfloat16" if matrix else "float32"), path
        if path in whole:
            np.testing.assert_array_equal(np.asarray(value, np.float32), whole[path])


def test_a_teacher_without_a_score_is_refused(tmp_path):
    save_qwen(tmp_path / "teacher")
    settings = qwen_to_bert(tmp_path, "Bert")
    text = dataclasses.replace(
        settings.text,
        teacher_template="prompt",
        teacher_tokenizer=settings.teacher.path,
    )
    stage = dataclasses.replace(settings, student=BERT, text=text).stages()["sft"]
    with pytest.raises(config.ConfigError, match="loop.steps=0.* has no score head"):
        train(stage, tmp_path / "run")


BERT = config.Encoder(num_layers=1, embed_dim=16, num_heads=2, mlp_dim=16)


def test_bge_reranker_gemma_reads_as_its_model_card(tmp_path):
    train_bpe(iter(["what is a panda? A: B: Yes No"] * 3), 290, tmp_path)
    stock = transformers.AutoTokenizer.from_pretrained(tmp_path)
    stock.add_special_tokens({"bos_token": "<bos>"})
    stock.save_pretrained(tmp_path)
    ours = Tokenizer(tmp_path, "bge_reranker_gemma")

    def ids(text):
        return stock(text, add_special_tokens=False)["input_ids"]

    query, document = "what is panda?", "a bear " * 40
    prompt = (
        "Given a query A and a passage B, determine whether the passage contains an "
        "answer to the query by providing a prediction of either 'Yes' or 'No'."
    )
    first = [stock.bos_token_id, *ids(f"A: {query}")]
    second = [*ids("\n"), *ids(f"B: {document}".strip())]
    end = [*ids("\n"), *ids(prompt)]
    length = len(first) + 30 + len(end)
    segment = ours.segment(
        ours.queries([query])[0],
        ours.documents([Document("d", "", document.strip())])[0],
        length,
    )
    assert segment.tokens == [*first, *second[:30], *end]
    assert segment.score == length - 1


def test_a_template_of_your_own(tmp_path):
    train_bpe(iter(["query document title"] * 3), 280, tmp_path)
    template = "query: {query} |||document: {title} {text}|||"
    config.Text(teacher_template=template)
    ours = Tokenizer(tmp_path, template)
    [query], [document] = (
        ours.queries(["a b"]),
        ours.documents([Document("d", "T", "x y")]),
    )
    segment = ours.segment(query, document, 99)
    assert ours.backend.decode(segment.tokens, skip_special_tokens=False) == (
        "query: a b document: T x y</s>"
    )
    assert words_of("q {query}|||d {both}|||end").end == ("end",)
    assert ours.template_digest != Tokenizer(tmp_path, "prompt").template_digest


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("qwen3", "it takes prompt, pair, .*qwen3_reranker, .* your own as"),
        ("{query}|||{both}", "words of your own as 'QUERY"),
        ("query|||{both}|||", "its query 'query' must hold {query}"),
        ("{query}|||{body}|||", "its document '{body}' may hold {title} or {text}"),
        ("{query}|||{|||", "its document '{' may hold"),
    ],
)
def test_templates_that_cannot_work(template, message):
    with pytest.raises(config.ConfigError, match=message):
        config.Text(teacher_template=template)


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        ("", (0, 1, 2, 3, 4, 5)),
        ("0,2,5", (0, 2, 5)),
        ("::2", (0, 2, 4)),
        ("1::2", (1, 3, 5)),
        (":3", (0, 1, 2)),
        ("-2:", (4, 5)),
    ],
)
def test_layers_are_named_by_number_or_by_slice(layers, kept):
    assert config.Pretrained(path="x", keep_layers=layers).kept(6) == kept


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("0,2,", "takes numbers from 0"),
        ("two", "takes numbers from 0"),
        ("0,6", r"layers \[0, 6\], and the checkpoint's 6 layers are 0 to 5"),
        ("2,1", "in rising order"),
        ("9:", r"layers \[\]"),
        ("::0", "step 0"),
    ],
)
def test_layers_that_are_not_there(layers, message):
    with pytest.raises(config.ConfigError, match=message):
        config.Pretrained(path="x", keep_layers=layers).kept(6)


def test_layers_are_a_flag():
    path = ROOT / "configs" / "qwen3_reranker_to_bert.py"
    flags = ["--config.student.keep_layers=0,2,4", "--config.sft.loop.steps=5"]
    settings = config.load(f"{path}:xlmr", flags, of=config.Pipeline)
    assert settings.student.kept(12) == (0, 2, 4)
    assert json.loads(json.dumps(config.to_dict(settings)))["teacher"]["path"]


# --- heads of sentence-transformers ---


def cross_encoder(folder, kind, **dense):
    """A CrossEncoder folder on a tiny Qwen3, scored by a dense layer or by logits."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore
    from sentence_transformers.sentence_transformer.modules import Pooling

    save_qwen(folder / "qwen")
    task = "feature-extraction" if kind == "dense" else "text-generation"
    body = Transformer(str(folder / "qwen"), transformer_task=task)
    if kind == "dense":
        pooling = Pooling(32, pooling_mode=dense.pop("pooling", "lasttoken"))
        fields = dict(activation_function=torch.nn.Identity()) | dense
        layer = Dense(32, 1, module_output_name="scores", **fields)
        modules = [body, pooling, layer]
    else:
        modules = [body, LogitScore(true_token_id=7, false_token_id=9)]
    stock = CrossEncoder(modules=modules, device="cpu")
    stock.save_pretrained(str(folder / "out"))
    return stock


@pytest.mark.parametrize("kind", ["dense", "logits"])
def test_a_head_of_sentence_transformers(kind, tmp_path):
    stock = cross_encoder(tmp_path, kind)
    checkpoint = open_checkpoint(config.Pretrained(path=str(tmp_path / "out")))
    assert checkpoint.model.head_bias == (kind == "dense")
    assert checkpoint.score_tokens == (() if kind == "dense" else (7, 9))
    model, _ = helpers.imported(tmp_path / "out", "score")
    pair = ("bota kela", "mifo rudi title")
    ids = stock.tokenizer(*pair)["input_ids"]
    T = len(ids)
    arrays = helpers.as_jax([[ids], [[1] * T], [range(T)], [[0] * T]])
    found = model(arrays, np.array([[T - 1]], np.int32))
    [expected] = stock.predict(
        [pair], activation_fn=torch.nn.Identity(), show_progress_bar=False
    )
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-4)


def test_a_head_of_sentence_transformers_that_is_another(tmp_path):
    cross_encoder(tmp_path, "dense", activation_function=torch.nn.Tanh())
    with pytest.raises(
        ModelError, match=r"modules.json: scores by 1 outputs of .*Tanh"
    ):
        open_checkpoint(config.Pretrained(path=str(tmp_path / "out")))


def test_the_text_part_of_a_model_that_sees(tmp_path):
    text = dict(
        vocab_size=98,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
    )
    vision = dict(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    settings = transformers.Gemma3Config(text_config=text, vision_config=vision)
    theirs = transformers.Gemma3ForConditionalGeneration(settings).eval()
    theirs.save_pretrained(tmp_path)
    _, _, notes = helpers.load(tmp_path, "language")
    assert notes and all(note.endswith("ignored") for note in notes)
    model, ours = helpers.imported(tmp_path, "language")
    assert ours.family == "gemma3_text"
    tokens, segments, positions, types = helpers.batch_of([12], 98)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits
    found = model(helpers.as_jax([tokens, segments, positions, types]))
    np.testing.assert_allclose(found, expected, atol=1e-4)


# --- tokenizers ---


def test_tokenizers_without_an_end_or_padding(tmp_path):
    train_bpe(iter(["query document title"] * 3), 280, tmp_path / "bpe")
    path = tmp_path / "bpe" / "tokenizer_config.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in whole.items() if k != "pad_token"}))
    assert Tokenizer(tmp_path / "bpe", "prompt").pad == 1  # any: padding is masked
    path.write_text(json.dumps({k: v for k, v in whole.items() if k != "eos_token"}))
    with pytest.raises(
        DataError, match="no eos_token, which .*'prompt' needs; set eos"
    ):
        Tokenizer(tmp_path / "bpe", "prompt")
    train_wordpiece(iter(["query document title"] * 3), 60, tmp_path / "wordpiece")
    path = tmp_path / "wordpiece" / "tokenizer_config.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in whole.items() if k != "pad_token"}))
    with pytest.raises(DataError, match="no pad_token, which .*'pair' needs; set pad"):
        Tokenizer(tmp_path / "wordpiece", "pair")


def test_a_checkpoint_is_not_read_by_a_tokenizer_of_ours(tmp_path):
    """Another vocabulary than the checkpoint's would score noise, without a word."""
    save_student(tmp_path / "bert", "Bert")
    world = config.World(
        num_topics=4,
        labelled_queries=4,
        unlabelled_queries=4,
        dev_queries=2,
        test_queries=4,
        clicks=10,
        candidates=4,
    )
    stage = config.Train(
        data=config.Data(world=world),
        text=config.Text(student_vocab_size=200),
        name="sft",
        role="student",
        model=config.Pretrained(path=str(tmp_path / "bert")),
        objective=config.Rank(),
        optim=config.Optim(learning_rate=1e-3, warmup=0),
        batch=config.Batch(size=8),
        loop=config.Loop(steps=1),
    )
    with pytest.raises(
        config.ConfigError, match="student_tokenizer is empty.*--config.text.student"
    ):
        train(stage, tmp_path / "runs")
