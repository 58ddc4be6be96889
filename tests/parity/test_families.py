"""Every family against transformers' own torch model: in, and out again."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import parity_helpers as helpers
import pytest
import tokenizers as tokenizers_library
import torch
import transformers
from flax import nnx

from ranker import config
from ranker.data.backends import load_tokenizer
from ranker.data.records import Document
from ranker.data.text import Tokenizer, train_bpe, train_wordpiece
from ranker.errors import DataError
from ranker.models import build
from ranker.models.huggingface import ModelError, export_huggingface, flat
from ranker.serving.frame import own_frame

V, T = 98, 24
DECODER = dict(
    vocab_size=V,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    max_position_embeddings=64,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
YARN = dict(
    rope_type="yarn",
    rope_theta=500.0,
    factor=4.0,
    original_max_position_embeddings=16,
)
DECODERS = {
    "llama": ("Llama", dict(rope_parameters=dict(rope_theta=5000.0))),
    "llama tied": ("Llama", dict(tie_word_embeddings=True, head_dim=16)),
    "llama linear": (
        "Llama",
        dict(rope_parameters=dict(rope_type="linear", rope_theta=100.0, factor=2.0)),
    ),
    "llama dynamic": (
        "Llama",
        dict(
            max_position_embeddings=16,  # shorter than the text
            rope_parameters=dict(rope_type="dynamic", rope_theta=100.0, factor=2.0),
        ),
    ),
    "llama3": ("Llama", dict(rope_parameters=LLAMA3)),
    "mistral": ("Mistral", dict(sliding_window=5, head_dim=8)),
    "mistral full": ("Mistral", dict(sliding_window=None, head_dim=8)),
    "qwen2": ("Qwen2", {}),
    "qwen2 window": (
        "Qwen2",
        dict(use_sliding_window=True, sliding_window=5, max_window_layers=2),
    ),
    "qwen3": ("Qwen3", dict(head_dim=16)),
    "qwen3 yarn": ("Qwen3", dict(head_dim=16, rope_parameters=YARN)),
    "gemma": ("Gemma", dict(head_dim=16)),
    "gemma2": (
        "Gemma2",
        dict(
            head_dim=16,
            sliding_window=5,
            query_pre_attn_scalar=24,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=2.0,
        ),
    ),
    "gemma3": (
        "Gemma3",
        dict(
            head_dim=16,
            sliding_window=5,
            query_pre_attn_scalar=24,
            layer_types=["sliding_attention", "full_attention"] * 2,
            rope_parameters=dict(
                sliding_attention=dict(rope_type="default", rope_theta=100.0),
                full_attention=dict(rope_type="linear", rope_theta=5000.0, factor=4.0),
            ),
        ),
    ),
}
LONGROPE = dict(
    rope_type="longrope",
    rope_theta=500.0,
    short_factor=[1.0, 1.2, 1.5, 2.0],
    long_factor=[1.0, 2.0, 4.0, 6.0],
)
DECODERS |= {
    "llama biased": ("Llama", dict(attention_bias=True, mlp_bias=True)),
    "llama both ways": ("Llama", dict(is_causal=False)),
    "qwen3 biased": ("Qwen3", dict(head_dim=16, attention_bias=True)),
    "ministral": (
        "Ministral",
        dict(
            head_dim=8,
            sliding_window=5,
            layer_types=["full_attention", "sliding_attention"] * 2,
        ),
    ),
    "ministral3": (
        "Ministral3",
        dict(
            head_dim=16,
            rope_parameters=YARN
            | dict(mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.3),
        ),
    ),
    "granite": (
        "Granite",
        dict(
            embedding_multiplier=3.0,
            residual_multiplier=0.4,
            attention_multiplier=0.2,
            logits_scaling=4.0,
        ),
    ),
    "smollm3": ("SmolLM3", dict(no_rope_layers=[1, 1, 0, 1])),
    "olmo2": ("Olmo2", {}),
    "olmo3": (
        "Olmo3",
        dict(
            sliding_window=5,
            layer_types=["sliding_attention", "full_attention"] * 2,
            rope_parameters=dict(
                sliding_attention=dict(rope_type="default", rope_theta=500.0),
                full_attention=YARN,
            ),
        ),
    ),
    "phi3": ("Phi3", dict(rope_parameters=dict(rope_theta=100.0), sliding_window=5)),
    "phi3 partial": (
        "Phi3",
        dict(rope_parameters=dict(rope_theta=100.0, partial_rotary_factor=0.5)),
    ),
    "phi3 long": (
        "Phi3",
        dict(original_max_position_embeddings=16, rope_parameters=LONGROPE),
    ),
    "seed_oss": ("SeedOss", dict(head_dim=16)),
}
ENCODER = dict(
    vocab_size=V,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=64,
    num_labels=1,
)
QUIET = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
ENCODERS = {
    "bert": ("Bert", QUIET),
    "roberta": ("Roberta", dict(pad_token_id=1, type_vocab_size=1, **QUIET)),
    "xlm-roberta": ("XLMRoberta", dict(pad_token_id=1, type_vocab_size=1, **QUIET)),
    "electra": ("Electra", dict(embedding_size=32, **QUIET)),
    "electra narrow": ("Electra", dict(embedding_size=16, **QUIET)),
    "bert tanh": ("Bert", dict(hidden_act="gelu_new", **QUIET)),
    "camembert": ("Camembert", dict(pad_token_id=1, type_vocab_size=1, **QUIET)),
    "data2vec": ("Data2VecText", dict(pad_token_id=1, type_vocab_size=1, **QUIET)),
    "distilbert": (
        "DistilBert",
        dict(
            dim=32,
            hidden_dim=48,
            n_layers=4,
            n_heads=4,
            dropout=0.0,
            attention_dropout=0.0,
            seq_classif_dropout=0.0,
        ),
    ),
    "gte": ("Gte", dict(pad_token_id=0, **QUIET)),
    "gte stretched": (
        "Gte",
        dict(
            pad_token_id=0,
            type_vocab_size=0,
            rope_parameters=dict(rope_type="linear", rope_theta=500.0, factor=1.25),
            **QUIET,
        ),
    ),
    "nomic": ("NomicBert", QUIET),
    "mpnet": ("MPNet", dict(pad_token_id=1, **QUIET)),
    "modernbert decoder": (
        "ModernBertDecoder",
        dict(
            local_attention=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
            attn_implementation="eager",
        ),
    ),
    "modernbert": (
        "ModernBert",
        dict(
            local_attention=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
            attn_implementation="eager",
        ),
    ),
    "modernbert mean": (
        "ModernBert",
        dict(
            local_attention=8,
            classifier_pooling="mean",
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
            attn_implementation="eager",
        ),
    ),
}
# A decoder's layers that read both ways.
EURO = dict(num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
EURO |= dict(mask_token_id=3)
ENCODERS |= {
    "eurobert": ("EuroBert", dict(classifier_pooling="bos", **EURO)),
    "eurobert mean": ("EuroBert", dict(classifier_pooling="mean", **EURO)),
    "eurobert late": ("EuroBert", dict(classifier_pooling="late", **EURO)),
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    texts = ["cheap flights to rome", "low fares every day"] * 3
    train_bpe(iter(texts), 270, root / "bpe")
    train_wordpiece(iter(texts), 90, root / "wordpiece")
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    words = [*specials, *"a b c d cheap flights to rome".split()]
    backend = tokenizers_library.Tokenizer(
        tokenizers_library.models.WordLevel(
            {word: i for i, word in enumerate(words)}, unk_token="<unk>"
        )
    )
    backend.pre_tokenizer = tokenizers_library.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers_library.processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0)
    )
    names = dict(pad="<pad>", unk="<unk>", cls="<s>", sep="</s>", bos="<s>", eos="</s>")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{k}_token": v for k, v in names.items()}
    ).save_pretrained(root / "roberta")
    return root


def decoder(name, kind, tmp_path):
    family, fields = DECODERS[name]
    text = "Text" if family == "Gemma3" else ""
    settings = getattr(transformers, f"{family}{text}Config")(
        **{**DECODER, **fields}, attn_implementation="eager", num_labels=1
    )
    middle = text if kind == "ForSequenceClassification" else ""
    model = getattr(transformers, f"{family}{middle}{kind}")(settings)
    theirs = helpers.randomised(model)
    theirs.save_pretrained(tmp_path)
    return theirs


def texts(lengths):
    tokens, segments, positions, types = helpers.batch_of(lengths, V, T)
    tokens = np.where(tokens < 3, tokens + 3, tokens) * segments  # no special tokens
    return tokens, segments, positions, types


def padded_left(tokens, lengths):
    left, mask = np.zeros_like(tokens), np.zeros_like(tokens)
    for row, n in enumerate(lengths):
        left[row, T - n :], mask[row, T - n :] = tokens[row, :n], 1
    return left, mask


@pytest.mark.parametrize("name", sorted(DECODERS.keys() - {"llama both ways"}))
def test_a_decoders_language_model(name, tmp_path):
    theirs = decoder(name, "ForCausalLM", tmp_path)
    model, settings = helpers.imported(tmp_path, "language")
    lengths = [T, 15]
    arrays = texts(lengths)
    tokens, segments = arrays[:2]
    ours = helpers.as_jax(arrays)
    hidden, logits = np.asarray(model.body(ours)), np.asarray(model(ours))
    for row, n in enumerate(lengths):  # alone: dynamic scaling reads the whole batch
        with torch.no_grad():
            found = theirs(
                torch.tensor(tokens[row, :n])[None], output_hidden_states=True
            )
        last = found.hidden_states[-1][0]
        np.testing.assert_allclose(hidden[row, :n], last, atol=1e-4)
        np.testing.assert_allclose(logits[row, :n], found.logits[0], atol=1e-4)
    # Two texts in one row are two texts.
    row = np.concatenate([tokens[1, :15], tokens[0, :9]])[None]
    numbers = np.concatenate([np.full(15, 1), np.full(9, 2)])[None]
    places = np.concatenate([np.arange(15), np.arange(9)])[None]
    packed = model(helpers.as_jax([row, numbers, places, row * 0]))
    with torch.no_grad():
        for part in (slice(15), slice(15, T)):
            found = theirs(torch.tensor(row[:, part])).logits[0]
            np.testing.assert_allclose(packed[0, part], found, atol=1e-4)


def scores_of(model, tokens, mask, positions):
    """Torch scores of rows, each alone: dynamic scaling reads the whole batch."""
    with torch.no_grad():
        scores = [
            model(x[None], attention_mask=m[None], position_ids=p[None]).logits[0]
            for x, m, p in zip(
                *map(torch.tensor, (tokens, mask, positions)), strict=True
            )
        ]
    return torch.stack(scores).numpy()


# Granite has no class for scores in transformers.
@pytest.mark.parametrize("name", sorted(DECODERS.keys() - {"granite"}))
def test_a_decoder_as_a_reranker_and_its_export(name, tmp_path, tokenizers):
    theirs = decoder(name, "ForSequenceClassification", tmp_path / "in")
    model, settings = helpers.imported(tmp_path / "in", "score")
    lengths = [T, 15, 1]
    tokens, segments, positions, types = texts(lengths)
    left, mask = padded_left(tokens, lengths)
    late = np.where(mask > 0, np.cumsum(mask, axis=1) - 1, 0)
    expected = scores_of(theirs, left, mask, late)
    index = jnp.asarray([[row * T + n - 1] for row, n in enumerate(lengths)], jnp.int32)
    arrays = helpers.as_jax([tokens, segments, positions, types])
    np.testing.assert_allclose(model(arrays, index), expected, atol=1e-4)
    # Padding on the left, of our own.
    index = jnp.asarray([[row * T + T - 1] for row in range(3)], jnp.int32)
    arrays = helpers.as_jax([left, mask, late, types * 0])
    np.testing.assert_allclose(model(arrays, index), expected, atol=1e-4)
    # And out again.
    export_huggingface(
        tmp_path / "out",
        settings,
        nnx.state(model, nnx.Param),
        head="score",
        tokenizer=tokenizers / "bpe",
        length=T,
    )
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    ).eval()
    assert type(stock) is type(theirs)
    same_tensors(theirs, stock)
    stock.config.pad_token_id = 0
    again = scores_of(stock, left, mask, late)
    np.testing.assert_allclose(again, expected, atol=1e-5)
    same_again(tmp_path / "out", settings, model, "score")


def same_again(folder, settings, model, head):
    """An export is read back as the model that it was: by itself, it scores alike."""
    checkpoint, params, notes = helpers.load(folder, head)
    assert config.to_dict(checkpoint.model) == nearly(config.to_dict(settings))
    # What is said of every MPNet is not about its tensors.
    assert not [note for note in notes if "plain kernel (xla)" not in note]
    ours = dict(flat(nnx.state(model, nnx.Param)))
    assert set(ours) == set(params)
    for path, value in params.items():
        np.testing.assert_allclose(value, ours[path], atol=1e-6, err_msg=path)


def nearly(fields):
    """Floats approximately, at any depth: config.json rounds an attention scale."""
    if isinstance(fields, dict):
        return {name: nearly(value) for name, value in fields.items()}
    return pytest.approx(fields) if isinstance(fields, float) else fields


PADDED_POSITIONS = [
    f"{root}.embeddings.position_embeddings.weight"
    for root in ("roberta", "data2vec_text", "mpnet")
]


def same_tensors(theirs, exported):
    theirs, exported = theirs.state_dict(), exported.state_dict()
    assert set(theirs) == set(exported)
    for name, value in theirs.items():
        # Positions up to the padding's are never a token's: they are written as zeros.
        first = 2 if name in PADDED_POSITIONS else 0
        if first:
            assert not exported[name][:first].any(), name
            value, exported[name] = value[first:], exported[name][first:]
        np.testing.assert_allclose(value, exported[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", sorted(DECODERS.keys() - {"llama both ways"}))
def test_a_language_model_out_again(name, tmp_path, tokenizers):
    theirs = decoder(name, "ForCausalLM", tmp_path / "in")
    model, settings = helpers.imported(tmp_path / "in", "language")
    export_huggingface(
        tmp_path / "out",
        settings,
        nnx.state(model, nnx.Param),
        head="language",
        tokenizer=tokenizers / "bpe",
        length=T,
    )
    stock = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    ).eval()
    assert type(stock) is type(theirs)
    same_tensors(theirs, stock)
    tokens = torch.tensor(texts([T])[0])
    with torch.no_grad():
        np.testing.assert_allclose(
            stock(tokens).logits, theirs(tokens).logits, atol=1e-5
        )
    same_again(tmp_path / "out", settings, model, "language")


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_and_its_export(name, tmp_path, tokenizers):
    family, fields = ENCODERS[name]
    settings = getattr(transformers, f"{family}Config")(**{**ENCODER, **fields})
    theirs = getattr(transformers, f"{family}ForSequenceClassification")(settings)
    theirs = helpers.randomised(theirs)
    theirs.save_pretrained(tmp_path / "in")
    _, _, notes = helpers.load(tmp_path / "in", "score")
    assert not [note for note in notes if "fresh" in note]
    model, ours = helpers.imported(tmp_path / "in", "score")
    lengths = [T, 15]
    tokens, segments, positions, types = texts(lengths)
    pad = getattr(settings, "pad_token_id", 0)
    inputs = dict(
        input_ids=torch.tensor(np.where(segments > 0, tokens, pad)),
        attention_mask=torch.tensor(segments),
    )
    if getattr(ours, "num_types", 0) > 1:
        inputs["token_type_ids"] = torch.tensor(types)
    with torch.no_grad():
        expected = theirs(**inputs).logits.numpy()
        hidden = theirs.base_model(**inputs).last_hidden_state.numpy()
    four = [tokens, segments, positions, types]
    arrays = helpers.as_jax(four)
    real = segments.astype(bool)
    np.testing.assert_allclose(
        np.asarray(model.body(arrays))[real], hidden[real], atol=1e-4
    )
    index = jnp.asarray([[0], [T]], jnp.int32)
    np.testing.assert_allclose(model(arrays, index), expected, atol=1e-4)
    # Padding on the left, and two texts in one row.
    turned = [np.concatenate([row[1:, 15:], row[1:, :15]], axis=1) for row in four]
    packed = [np.concatenate([x[1:, :15], x[:1]], axis=1) for x in four]
    packed[1] = np.concatenate([np.full((1, 15), 1), np.full((1, T), 2)], axis=1)
    for row, places, scores in (
        (turned, [[9]], expected[1:]),
        (packed, [[0, 15]], expected[::-1].T),
    ):
        found = model(helpers.as_jax(row), jnp.asarray(places, jnp.int32))
        np.testing.assert_allclose(found, scores, atol=1e-4)
    export_huggingface(
        tmp_path / "out",
        ours,
        nnx.state(model, nnx.Param),
        head="score",
        tokenizer=tokenizers / ("roberta" if pad == 1 else "wordpiece"),
        length=T,
    )
    more = dict(attn_implementation="eager") if "modern" in name else {}
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", **more
    ).eval()
    assert type(stock) is type(theirs)
    same_tensors(theirs, stock)
    with torch.no_grad():
        again = stock(**inputs).logits.numpy()
    np.testing.assert_allclose(again, expected, atol=1e-5)
    same_again(tmp_path / "out", ours, model, "score")


def test_the_pair_template_is_the_tokenizers_own(tokenizers):
    stock = transformers.AutoTokenizer.from_pretrained(str(tokenizers / "roberta"))
    ours = Tokenizer(tokenizers / "roberta", "pair")
    [query] = ours.queries(["cheap flights"])
    [document] = ours.documents([Document("d", "a b", "to rome")])
    segment = ours.segment(query, document, 20)
    assert segment.tokens == stock("cheap flights", "a b to rome")["input_ids"]
    assert set(segment.types) == {0} and segment.score == 0
    short = ours.segment(query, document, 9)
    assert (
        short.tokens
        == (
            stock(
                "cheap flights", "a b to rome", truncation="only_second", max_length=9
            )
        )["input_ids"]
    )


def test_a_pair_needs_its_own_type_on_each_side(tmp_path, tokenizers):
    """Types that change elsewhere would be read otherwise than stock models do."""
    folder = tmp_path / "odd"
    shutil.copytree(tokenizers / "wordpiece", folder)
    path = str(folder / "tokenizer.json")
    backend = tokenizers_library.Tokenizer.from_file(path)
    names = ("[CLS]", "[SEP]")
    backend.post_processor = tokenizers_library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP]:1 $B:1 [SEP]:1",
        special_tokens=[(name, backend.token_to_id(name)) for name in names],
    )
    backend.save(path)
    with pytest.raises(DataError, match=r"the types \[0, 0, 1, .*one type before"):
        Tokenizer(folder, "pair")
    model = config.Encoder(num_layers=1, embed_dim=8, num_heads=2, mlp_dim=8)
    with pytest.raises(DataError, match="one type before the second text"):
        own_frame(load_tokenizer(folder), model, 32)
    plain = dataclasses.replace(model, num_types=0)
    assert own_frame(load_tokenizer(folder), plain, 32).types == (0, 0)


def test_roberta_needs_its_own_padding(tmp_path, tokenizers):
    settings = config.Encoder(
        num_layers=1, embed_dim=16, num_heads=2, mlp_dim=16, family="roberta"
    )
    model = build.build(settings, 50, "score", key=jax.random.key(0))
    with pytest.raises(ModelError, match="padding token is 0, and 'roberta' counts"):
        export_huggingface(
            tmp_path,
            settings,
            nnx.state(model, nnx.Param),
            head="score",
            tokenizer=tokenizers / "wordpiece",
            length=T,
        )


@pytest.mark.parametrize("name", ["bert", "roberta", "electra narrow", "modernbert"])
def test_a_bare_encoder_begins_with_a_fresh_score(name, tmp_path):
    family, fields = ENCODERS[name]
    settings = getattr(transformers, f"{family}Config")(**{**ENCODER, **fields})
    getattr(transformers, f"{family}Model")(settings).save_pretrained(tmp_path)
    _, params, notes = helpers.load(tmp_path, "score")
    assert "head.dense" not in params and "body.embedding" in params
    assert any("head.dense: not in the checkpoint" in note for note in notes)


def test_chosen_layers_are_kept(tmp_path):
    settings = transformers.BertConfig(**ENCODER, **QUIET)
    theirs = helpers.randomised(transformers.BertForSequenceClassification(settings))
    theirs.save_pretrained(tmp_path)
    model, ours = helpers.imported(tmp_path, "score", keep_layers="0,3")
    assert ours.num_layers == 2
    theirs.bert.encoder.layer = torch.nn.ModuleList(
        [theirs.bert.encoder.layer[i] for i in (0, 3)]
    )
    tokens, segments, positions, types = texts([T, 15])
    with torch.no_grad():
        expected = theirs(
            torch.tensor(tokens),
            attention_mask=torch.tensor(segments),
            token_type_ids=torch.tensor(types),
        ).logits.numpy()
    arrays = helpers.as_jax([tokens, segments, positions, types])
    index = jnp.asarray([[0], [T]], jnp.int32)
    np.testing.assert_allclose(model(arrays, index), expected, atol=1e-4)
    with pytest.raises(ModelError, match=r"layers \[0, 4\], .* are 0 to 3"):
        helpers.load(tmp_path, "score", keep_layers="0,4")


@pytest.mark.parametrize("name", ["qwen3", "gemma"])
def test_a_score_from_the_logits_of_two_words(name, tmp_path, tokenizers):
    theirs = decoder(name, "ForCausalLM", tmp_path)
    vocabulary = {f"t{i}": i for i in range(V)}
    backend = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers_library.Tokenizer(
            tokenizers_library.models.WordLevel(vocabulary, unk_token="t0")
        )
    )
    backend.save_pretrained(tmp_path)
    lengths = [T, 15]
    arrays = texts(lengths)
    with torch.no_grad():
        logits = theirs(
            torch.tensor(arrays[0]), attention_mask=torch.tensor(arrays[1])
        ).logits.numpy()
    last = logits[np.arange(2), np.array(lengths) - 1]
    index = jnp.asarray([[T - 1], [T + 14]], jnp.int32)
    for tokens, expected in (
        (("t7", "t9"), last[:, 7] - last[:, 9]),
        (("t7",), last[:, 7]),
    ):
        model, _ = helpers.imported(tmp_path, "score", score_tokens=tokens)
        found = model(helpers.as_jax(arrays), index)
        np.testing.assert_allclose(found[:, 0], expected, atol=1e-4)
    with pytest.raises(ModelError, match="no token 'T7'; did you mean t7"):
        helpers.load(tmp_path, "score", score_tokens=("T7",))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(qk_norm=True), "qk_norm True would be False"),
        (dict(qkv_bias=True), "'llama' cannot express"),
        (dict(window=4, local_layers=(0,)), "window 4 would be 0"),
    ],
)
def test_an_export_says_what_its_family_lacks(fields, message, tmp_path, tokenizers):
    settings = config.Decoder(
        num_layers=1,
        embed_dim=16,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mlp_dim=16,
        **fields,
    )
    model = build.build(settings, 50, "score", key=jax.random.key(0))
    with pytest.raises(ModelError, match=message):
        export_huggingface(
            tmp_path / "out",
            settings,
            nnx.state(model, nnx.Param),
            head="score",
            tokenizer=tokenizers / "bpe",
            length=T,
        )
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
