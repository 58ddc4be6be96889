"""Files appear whole or not at all, wherever they are written."""

import errno
import os

import pytest

from ranker import storage


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_failed_write_leaves_the_old_file_and_nothing_beside(tmp_path, mode):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError), storage.writing(path, mode) as file:
        file.write("new" if mode == "w" else b"new")
        raise KeyError
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"
    with storage.writing(path, mode) as file:
        file.write("né" if mode == "w" else "né".encode())
    assert path.read_text("utf-8") == "né"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []
    fsync = os.fsync

    def look(number):
        seen.append(sorted(one.name for one in tmp_path.iterdir()))
        fsync(number)

    monkeypatch.setattr(storage.os, "fsync", look)
    storage.write_json(tmp_path / "a.json", {"a": 1})
    before, after = seen  # the file's content, then the folder's names
    assert len(before) == 1 and before[0].startswith(".a.json.")
    assert after == ["a.json"]


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as raised:
        storage.write_json(tmp_path / "a.json", {})
    assert raised.value.filename == str(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def test_a_folder_appears_whole(tmp_path):
    with storage.replacing(tmp_path / "folder") as aside:
        (aside / "inner").mkdir(parents=True)
        (aside / "inner" / "file").write_text("x")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "inner" / "file").read_text() == "x"
    with pytest.raises(KeyError), storage.replacing(tmp_path / "other") as aside:
        aside.mkdir()
        raise KeyError
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_a_text_has_its_folder_made_and_a_pipe_is_written_to(tmp_path):
    storage.write_text(tmp_path / "a" / "b.txt", "né")
    assert (tmp_path / "a" / "b.txt").read_text("utf-8") == "né"
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    storage.write_text(tmp_path / "pipe", "x")
    assert os.read(reading, 10) == b"x"
    os.close(reading)
    assert not (tmp_path / "pipe").is_file()  # nor replaced by one
