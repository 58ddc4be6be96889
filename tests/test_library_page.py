"""docs/library.md: its examples run and give what they say."""

import pathlib
import re

import numpy as np
import pytest

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "library.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def names_after(word):
    """What the one example with this word leaves behind."""
    [code] = [block for block in BLOCKS if word in block]
    known = {}
    exec(compile(code, str(PAGE), "exec"), known)
    return known


def test_the_loss_falls_in_the_users_own_loop():
    known = names_after("optax.sgd")
    assert known["loss"](known["scores"]) < 0.2  # 0.63 before the first step


def test_the_measure_is_of_the_lists_given():
    value = names_after("ranking.evaluate")["found"]["NDCG@10"].mean
    # b, c, a with grades 0, 1, 2; the ideal order is a, c, b.
    ideal = 2 + 1 / np.log2(3)
    assert value == pytest.approx((1 / np.log2(3) + 2 / 2) / ideal)


def test_the_packed_row_is_the_one_in_the_comment():
    segments = names_after("choose_documents")["batch"].rows.segments
    [said] = re.findall(r"batch\.rows\.segments  # (.*)", PAGE.read_text())
    assert segments.tolist() == eval(said)


def test_every_other_example_asks_for_an_export():
    rest = [b for b in BLOCKS if "optax" not in b and "evaluate(" not in b]
    rest = [block for block in rest if "choose_documents" not in block]
    assert all('ranker.load("runs/quickstart/export")' in block for block in rest)
