"""Lists of clicks: from a log to what sft reads."""

import json
import types

import numpy as np
import pytest

from ranker import config
from ranker.data.impressions import load_click_lists
from ranker.data.records import Document, RankedList
from ranker.errors import ConfigError, DataError
from ranker.online import events, impressions
from ranker.online.results import Shown
from ranker.training.inputs import rank_lists

CORPUS = [Document(f"d{n}", f"title {n}", "") for n in range(4)]


def _list(query):
    none = np.zeros(0, np.float32)
    return RankedList(
        "q", query, np.zeros(0, np.int64), none, none, (), np.zeros(0, np.int32)
    )


def _write(folder, *rows):
    path = folder / "lists.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_labels_by_hand():
    """Two pages of one query: d0, d1 and d1, d0; clicks on d0 on top, d0 below."""
    shown = Shown(
        np.array([[0, 1], [1, 0]], np.int32),
        np.array([[True, False], [False, True]]),
        np.full((2, 2), np.nan),
        np.array([1, 2], np.uint64),
        np.zeros(2, np.int64),
        ["q"],
        np.zeros(2, np.int64),
        ["d0", "d1"],
    )
    naive, times = impressions.label(shown)
    np.testing.assert_allclose(naive, [1.0, 0.0])
    assert times.tolist() == [2, 2]
    weighted, _ = impressions.label(shown, looks=(1.0, 0.25))
    np.testing.assert_allclose(weighted, [(1 + 4) / 2, 0.0])
    clipped, _ = impressions.label(shown, looks=(1.0, 0.25), clip=2.0)
    np.testing.assert_allclose(clipped, [(1 + 2) / 2, 0.0])


def test_inverse_propensities_undo_the_position():
    """A logger that favours the worse of two results: only IPS orders them rightly."""
    r = np.random.default_rng(0)
    pages, looks = 20_000, np.array([1.0, 0.3])
    first = (r.random(pages) < 0.1).astype(int)  # d0, the better, is rarely on top
    pairs = np.where(first[:, None] == 1, [[0, 1]], [[1, 0]]).astype(np.int32)
    attraction = np.array([0.6, 0.4])
    clicks = r.random((pages, 2)) < attraction[pairs] * looks
    shown = Shown(
        pairs,
        clicks,
        np.full((pages, 2), np.nan),
        np.arange(pages, dtype=np.uint64),
        np.zeros(pages, np.int64),
        ["q"],
        np.zeros(2, np.int64),
        ["d0", "d1"],
    )
    naive, _ = impressions.label(shown)
    assert naive[0] < naive[1]
    weighted, _ = impressions.label(shown, looks=looks.tolist())
    np.testing.assert_allclose(weighted, attraction, atol=0.02)


def test_lists_are_read_and_what_is_left_out_is_counted(tmp_path):
    path = _write(
        tmp_path,
        {"query": "tea", "document_ids": ["d2", "d0"], "labels": [0.5, 0]},
        {"query": " Held  OUT", "document_ids": ["d2", "d0"], "labels": [1, 0]},
        {"query": "cup", "document_ids": ["d1", "gone"], "labels": [1, 0]},
        {"query": "pot", "document_ids": ["d1", "d2"], "labels": [0, 0]},
        {"query": "jug", "document_ids": ["d3", "no", "d1"], "labels": [0, 2, 1]},
    )
    found = load_click_lists(path, CORPUS, [_list("held out")])
    assert [one.query for one in found.lists] == ["tea", "jug"]
    assert found[0].documents.tolist() == [2, 0]
    assert found[0].labels.tolist() == [0.5, 0.0]
    assert found[1].documents.tolist() == [3, 1]
    assert (found.held_out, found.short, found.without_text) == (1, 2, 2)
    assert "2 lists of clicks" in found.report()


def test_pages_keep_positions_and_weights(tmp_path):
    """Of two pages one has a click: its lists say where results were shown."""
    log = tmp_path / "log.tsv"
    rows = [
        "time\tuser\tpage\tevent\tquery\tdocument_id\tposition",
        *(f"1\tu1\tp1\tpage\ttea\td{k - 1}\t{k}" for k in (1, 2, 3)),
        "2\tu1\tp1\tclick\t\td1\t2",
        *(f"9\tu2\tp2\tpage\ttea\td{k}\t{k}" for k in (1, 2)),
    ]
    log.write_text("\n".join(rows) + "\n")
    with events.read_log([log], fields=impressions.FIELDS) as read:
        settings = impressions.Settings(by="page", looks=(1.0, 0.25, 0.01), clip=3.0)
        summary, lists = impressions.analyse(read, settings)
        found = list(lists)
    assert found == [
        {
            "query": "tea",
            "document_ids": ["d0", "d1", "d2"],
            "labels": [0, 1, 0],
            "positions": [1, 2, 3],
            "weights": [1.0, 3.0, 1.0],
        }
    ]
    assert (summary["by"], summary["lists"], summary["queries"]) == ("page", 1, 1)
    read_again = load_click_lists(_write(tmp_path, *found), CORPUS[:2], [])
    assert read_again[0].positions.tolist() == [1, 2]
    assert read_again[0].weights.tolist() == [1.0, 3.0]
    assert "1 clicks count up to 3 each" in read_again.report()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("[1]", "a JSON object"),
        ("{", "a JSON object"),
        ('{"query": "", "document_ids": [], "labels": []}', "'query'"),
        ('{"query": "q", "document_ids": "d1", "labels": [1]}', "'document_ids'"),
        ('{"query": "q", "document_ids": ["d1"], "labels": [1, 2]}', "'labels'"),
        ('{"query": "q", "document_ids": ["d1"], "labels": [-1]}', "'labels'"),
        ('{"query": "q", "document_ids": ["d1"], "labels": ["x"]}', "'labels'"),
        ('{"query": "q", "document_ids": ["d1"], "labels": []}', "'labels'"),
        (
            '{"query": "q", "document_ids": ["d1"], "labels": [1], "positions": [0]}',
            "'positions'",
        ),
        (
            '{"query": "q", "document_ids": ["d1"], "labels": [1], "weights": [1, 2]}',
            "'weights'",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, said):
    path = tmp_path / "lists.jsonl"
    good = '{"query": "q", "document_ids": ["d1", "d2"], "labels": [1, 0]}'
    path.write_text(f"{good}\n{row}\n")
    with pytest.raises(DataError) as error:
        load_click_lists(path, CORPUS, [])
    assert f"{path.name}:2: field" in str(error.value) and said in str(error.value)


def _stage(**fields):
    return config.Train(
        name="sft",
        model=config.Encoder(num_layers=1, embed_dim=8, num_heads=1, mlp_dim=8),
        objective=config.Rank(),
        optim=config.Optim(learning_rate=1e-3, warmup=0),
        batch=config.Batch(size=1),
        loop=config.Loop(steps=1),
        **fields,
    )


def test_sft_reads_judged_lists_clicks_or_both(tmp_path, capsys):
    path = str(
        _write(tmp_path, {"query": "q", "document_ids": ["d1", "d0"], "labels": [1, 0]})
    )
    judged = [_list("judged")] * 3
    prepared = types.SimpleNamespace(
        lists=lambda split: judged if split == "train" else [], corpus=lambda: CORPUS
    )

    def queries(**fields):
        found = rank_lists(_stage(**fields), prepared, tmp_path)
        return [found[at].query for at in range(len(found))]

    assert queries() == ["judged"] * 3
    assert queries(click_lists=path) == ["judged"] * 3 + ["q"]
    assert queries(click_lists=path, judged_lists=False) == ["q"]
    assert "1 lists of clicks" in capsys.readouterr().out


def test_settings_that_learn_from_nothing_are_refused():
    with pytest.raises(ConfigError, match="nothing to learn from"):
        _stage(judged_lists=False)
    stage = _stage()
    with pytest.raises(ConfigError, match="only a rank objective"):
        config.Train(
            **{
                **vars(stage),
                "objective": config.Distillation(),
                "scores": "scores",
                "click_lists": "x.jsonl",
            }
        )
