"""The model card of an export."""

import json
import types

from ranker import config, manifests
from ranker.training.card import FILE, base_of, write_card


def test_a_card_names_base_licence_data_and_measures(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- x\n---\n# B\n")
    facts = manifests.TrainFacts(
        tokenizer="t",
        template="u",
        vocab_size=9,
        begins_from=base_of("some/base", base),
    )
    manifest = manifests.Manifest(
        kind="distill", settings={}, inputs={}, facts=facts.to_dict()
    )
    model = config.Encoder(num_layers=6, embed_dim=384, num_heads=12, mlp_dim=1536)
    trained = types.SimpleNamespace(
        name="distill", manifest=manifest, model=model, length=128
    )
    out = tmp_path / "export"
    out.mkdir()
    promise = dict(query="{query}", document="{both}")
    (out / "ranker_contract.json").write_text(json.dumps(promise))
    summary = dict(
        split="test",
        systems={
            "bm25": dict(metrics={"ndcg_cut_10": 0.5}),
            "distill": dict(metrics={"ndcg_cut_10": 0.625}),
        },
    )
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    report = dict(documents=1234, splits=dict(train=dict(queries=10, candidates=200)))
    write_card(out, tmp_path, trained, report)
    card = (out / FILE).read_text()
    assert 'base_model: "some/base"\nlicense: apache-2.0\n' in card
    assert "bert encoder of 6 layers of width 384" in card
    assert "| train | 10 | 200 |" in card and "1,234 documents" in card
    assert "| distill | 0.6250 |" in card and "| bm25 | 0.5000 |" in card
    assert "ranker.load" in card and "CrossEncoder" in card
    # What the card shows is Python that parses.
    for block in card.split("```python\n")[1:]:
        compile(block.split("```")[0], "card", "exec")


def test_a_base_without_a_card_has_no_licence(tmp_path):
    assert base_of("x", tmp_path)["licence"] == ""
