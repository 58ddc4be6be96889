"""Click examples that another engine left in files; Beam itself is tested apart."""

import json

import pytest

from ranker import prepare
from ranker.data import datasets
from ranker.data.clicks import Digest
from ranker.data.records import ClickExample
from ranker.data.shards import SUMMARY, Shard, ShardedClicks, doubt, doubtful_from
from ranker.errors import ConfigError, DataError


def examples(begin, end):
    return [ClickExample(f"q{i}", "t", f"s{i}", i + 1) for i in range(begin, end)]


def digest(found):
    result = Digest()
    for one in found:
        result.add(one)
    return result.hexdigest()


def write(folder, **changed):
    """What workers leave: two files of train, in another order, and one of dev."""
    shards = []
    folder.mkdir()
    for split, number, part in (
        ("train", 1, examples(5, 9)),
        ("dev", 0, examples(9, 10)),
        ("train", 0, examples(0, 5)),
    ):
        name = f"{split}-{number}"
        datasets.write_click_file(folder / name, part)
        shard = Shard(
            split=split,
            number=number,
            name=name,
            records=len(part),
            digest=digest(part),
            doubtful=(),
        )
        shards.append(shard.to_json())
    told = {
        "shards": shards,
        "a_query": {"10": 1, "2": 3},
        "count_by": "dwell",
        "tallies": {
            "rows": 30,
            "clicked": 21,
            "counted": 34,
            "timed": 6,
            "kept": 14,
            "held out": 4,
            "not clicked": 12,
            "position/2/rows": 5,
            "position/10/rows": 2,
            "position/2/clicked": 3,
        },
        "held_out_queries": 2,
        "pairs": 11,
        "notes": [],
    }
    (folder / SUMMARY).write_text(json.dumps({**told, **changed}))
    return str(folder)


def test_files_are_read_in_the_order_of_their_numbers(tmp_path):
    table = ShardedClicks(write(tmp_path / "out"), tmp_path / "taken")
    assert list(table.examples("train")) == examples(0, 9)
    for every in (2, 3, 7, 100):
        assert list(table.examples("train", every=every)) == examples(0, 9)[::every]
    assert list(table.examples("dev")) == examples(9, 10)
    assert table.digest("train") == digest(reversed(examples(0, 9)))
    assert table.clicks_a_query() == {"2": 3, "10": 1}


def test_what_workers_counted_is_what_one_machine_counts(tmp_path):
    table = ShardedClicks(write(tmp_path / "out"), tmp_path / "taken")
    counts = table.counts
    assert (counts.rows, counts.merged) == (30, 3)
    assert counts.examples == {"train": 9, "dev": 1}
    assert counts.report()["counted"] == {
        "by": "dwell",
        "clicks": 21,
        "counts": 34,
        "rows_by_dwell": 6,
    }
    assert counts.dropped["over the cap of a query"] == 1
    assert (counts.held_out, counts.held_out_queries) == (4, 2)
    assert table.shown["positions"] == {
        "2": {"rows": 5, "clicked": 3},
        "10": {"rows": 2, "clicked": 0},
    }


def test_files_become_a_data_set_without_being_read(tmp_path, monkeypatch):
    table = ShardedClicks(write(tmp_path / "out"), tmp_path / "taken")
    monkeypatch.setattr(datasets, "ArrayRecordWriter", None)  # nothing is written
    files = {split: table.files(split) for split in ("train", "dev")}
    datasets.take_clicks(tmp_path / "clicks", files)
    assert list(datasets.load_clicks(tmp_path / "clicks", "train")) == examples(0, 9)
    assert list(datasets.load_clicks(tmp_path / "clicks", "dev")) == examples(9, 10)


def test_what_a_worker_found_wrong_stops_the_run(tmp_path):
    notes = [{"ignored": []}, {"problem": "log/b.tsv:7: query: found 7"}]
    with pytest.raises(DataError, match=r"log/b\.tsv:7: query"):
        ShardedClicks(write(tmp_path / "out", notes=notes), tmp_path / "taken")


def test_doubtful_queries():
    assert doubt("lamp") == 4 and doubt("手机") == 6
    assert doubt("\ufdfa") == len("صلى الله عليه وسلم".encode())  # one character
    assert doubt("각") == 9  # three letters where a tokenizer takes it apart
    assert doubtful_from([64, 512]) == 32


def test_flags_are_ours_or_beams():
    given = ["--config", "c.py", "--runner", "FlinkRunner", "--flink_master=host:1"]
    given += ["--workdir=w", "--config.data.path", "x", "--output=gs://b/c"]
    ours, beam = prepare.divide_flags(given)
    assert ours == ["--config", "c.py", "--workdir=w", "--config.data.path", "x"]
    assert beam == [
        "--runner",
        "FlinkRunner",
        "--flink_master=host:1",
        "--output=gs://b/c",
    ]
    assert prepare.divide_flags(["--config=c", "--other=1"]) == (
        ["--config=c", "--other=1"],
        [],
    )


def test_without_beam_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    with pytest.raises(ConfigError, match=r'pip install "ranker\[beam\]"'):
        prepare.beam_engine(["--runner=DirectRunner"])


def test_shards_are_a_number():
    with pytest.raises(ConfigError, match="--shards takes a number"):
        prepare.shard_count("0")
    assert prepare.shard_count("7") == 7
