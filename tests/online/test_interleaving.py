"""Interleaving: pages by hand, no bias, and preferences clustered by user."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker.online import interleaving as il
from ranker.online import preference

A, B = ("a", "b", "c"), ("b", "c", "a")  # the example on which balanced is biased
METHODS = (il.team_draft, il.balanced, il.probabilistic, il.optimised)
rankings = st.permutations(list("abcdefgh")).map(lambda one: one[:6])


def _key(n):
    return il.make_key("q", f"u{n}", "2026-11-27")


@given(rankings, rankings, st.integers(0, 99))
@pytest.mark.parametrize("method", METHODS)
def test_pages_hold_each_result_once_and_are_the_same_again(method, a, b, n):
    page = method(a, b, _key(n), length=5)
    assert page == method(a, b, _key(n), length=5)
    assert len(page.documents) == len(set(page.documents)) == 5
    assert set(page.documents) <= {*a, *b}
    assert len(page.teams) == len(page.credits) == 5
    if method is not il.probabilistic:
        # Every result is the best left of one of the two.
        for at, one in enumerate(page.documents):
            rest = [[d for d in r if d not in page.documents[:at]] for r in (a, b)]
            assert one in (rest[0][0], rest[1][0])


@given(rankings, rankings, st.integers(0, 99))
def test_team_draft_shares_the_page(a, b, n):
    page = il.team_draft(a, b, _key(n), length=6)
    assert abs(page.teams.count("a") - page.teams.count("b")) <= 1
    for name, ranking in (("a", a), ("b", b)):
        own = [d for d, t in zip(page.documents, page.teams, strict=True) if t == name]
        assert own == sorted(own, key=ranking.index)


def test_the_same_ranking_is_shown_as_it_is():
    for method in METHODS[:2]:
        assert method("abcd", "abcd", _key(1)).documents == tuple("abcd")


def test_a_published_example():
    """(1 2 3 4 5) and (4 3 5 1 2), a first: 1 4 2 3 5; clicks on 1 and 2 are a's."""
    pages = {il.team_draft("12345", "43512", _key(n), length=5) for n in range(40)}
    page = next(one for one in pages if one.documents == tuple("14235"))
    assert page.teams[:4] == ("a", "b", "a", "b")
    assert page.credits[0] + page.credits[2] == 2


def _random_click_bias(method, credit, pages=3000):
    clicked = np.random.default_rng(0).integers(0, 3, pages)
    credits = [
        credit(method(A, B, _key(n), length=3), int(at)) for n, at in enumerate(clicked)
    ]
    return np.mean(credits), 3 * np.std(credits) / pages**0.5


def test_only_balanced_interleaving_is_biased_by_clicks_at_random():
    def of_page(page, at):
        return page.credits[at]

    for method in (il.team_draft, il.probabilistic, il.optimised):
        bias, slack = _random_click_bias(method, of_page)
        assert abs(bias) < slack
    bias, slack = _random_click_bias(
        il.balanced,
        lambda page, at: il.balanced_credit(A, B, page.documents, [page.documents[at]]),
    )
    assert bias == pytest.approx(-1 / 3, abs=slack)  # prefers b


def test_optimised_chances_prefer_nobody_at_any_depth():
    a, b = tuple("abcdef"), tuple("badcfg")
    pages, chances = il.optimised_pages(a, b, 6)
    assert sum(chances) == pytest.approx(1)
    credit = np.array([[il.rank_difference(d, a, b) for d in page] for page in pages])
    assert np.allclose(np.array(chances) @ np.cumsum(credit, axis=1), 0, atol=1e-7)


def test_probabilistic_credit_by_hand():
    """First place, tau 1: a gives 'a' 6/11 of (1, 1/2, 1/3), b gives it 2/11."""
    shown = {}
    for n in range(60):
        page = il.probabilistic(A, B, _key(n), length=1, tau=1.0)
        shown[page.documents[0]] = page.credits[0]
    assert shown["a"] == pytest.approx((6 - 2) / (6 + 2))
    assert shown["b"] == pytest.approx((3 - 6) / (3 + 6))
    assert shown["c"] == pytest.approx((2 - 3) / (2 + 3))


def test_multileaving_is_fair_to_all():
    systems = {name: [f"{name}{n}" for n in range(5)] for name in "xyz"}
    firsts = [il.multileave(systems, _key(n)).teams[0] for n in range(900)]
    counts = [firsts.count(name) for name in "xyz"]
    assert min(counts) > 240  # 300 each expected, 4 standard errors
    page = il.multileave(systems, _key(0), length=6)
    assert sorted(page.teams) == sorted("xyz" * 2)


def test_keys_depend_on_each_part_and_its_borders():
    keys = {
        il.make_key("ab", "c", "d"),
        il.make_key("a", "bc", "d"),
        il.make_key("a", "b", "cd"),
        il.make_key("ab", "c", "e"),
        il.make_key("ab", "c", "d", salt="x"),
    }
    assert len(keys) == 5


def test_what_cannot_be_interleaved_says_why():
    with pytest.raises(ValueError, match="'a' twice"):
        il.team_draft("aba", "ab", _key(0))
    with pytest.raises(ValueError, match="up to 12"):
        il.optimised("ab", "ba", _key(0), length=13)
    with pytest.raises(ValueError, match="at least one ranking"):
        il.multileave({}, _key(0))


# --- preference ---


def test_delta_by_hand():
    """Chapelle et al. (2012): (wins + ties / 2) / all - 1 / 2."""
    one = preference.prefer(np.array([3, 0]), np.array([0, 1]), np.array([1, 1]))
    assert one.delta == pytest.approx((3 + 1) / 6 - 0.5)
    assert one.sign_p_value == 1.0


def test_preference_is_clustered_by_user():
    """A user who votes a hundred times alike is one vote, not a hundred."""
    wins, losses = np.array([100, 0, 0]), np.array([0, 1, 1])
    one = preference.prefer(wins, losses, np.zeros(3))
    assert one.delta > 0.4 and one.p_value > 0.1


def test_false_positives_of_the_preference():
    """Users that each prefer one system, in different numbers: 5 % of A/A tests."""
    generator = np.random.default_rng(0)
    p = []
    for _ in range(400):
        pages = 1 + generator.poisson(generator.lognormal(0.5, 1, 300))
        taste = generator.beta(2, 2, 300)
        wins = generator.binomial(pages, taste)
        p.append(preference.prefer(wins, pages - wins, np.zeros(300)).p_value)
    assert 0.025 <= np.mean(np.array(p) < 0.05) <= 0.08
