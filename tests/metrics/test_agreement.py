"""Teacher against student: correlations, the line, ties, saturation."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker.metrics.agreement import (
    agreement,
    find_faults,
    fit_affine,
    saturation,
)


def _lists(seed, lengths=(5, 8, 3, 1)):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=n) for n in lengths]


def test_a_student_that_copies_agrees_in_everything():
    teacher = _lists(0)
    found = agreement(teacher, [2 * one - 3 for one in teacher])
    assert found.lists == 4 and found.documents == 17
    assert (found.kendall, found.spearman) == pytest.approx((1, 1))
    assert (found.slope, found.intercept) == pytest.approx((2, -3))
    assert found.r_squared == pytest.approx(1)
    assert found.teacher_ties == found.student_ties == 0


def test_a_student_that_reverses_disagrees():
    teacher = _lists(1)
    found = agreement(teacher, [-one for one in teacher])
    assert (found.kendall, found.spearman) == pytest.approx((-1, -1))


def test_kendall_by_hand():
    # Pairs: (1,2) and (1,3) agree, (2,3) does not: (2 - 1) / 3.
    found = agreement([np.array([3.0, 2.0, 1.0])], [np.array([9.0, 4.0, 5.0])])
    assert found.kendall == pytest.approx(1 / 3)
    assert found.spearman == pytest.approx(0.5)


def test_correlations_are_within_lists():
    """Two queries whose scores lie apart agree between, not within."""
    teacher = [np.array([0.0, 1.0]), np.array([100.0, 101.0])]
    student = [np.array([1.0, 0.0]), np.array([101.0, 100.0])]
    found = agreement(teacher, student)
    assert found.kendall == -1
    assert found.r_squared > 0.99


def test_ties_and_lists_without_order():
    found = agreement([np.zeros(3), np.ones(1)], [np.arange(3.0), np.ones(1)])
    assert math.isnan(found.kendall) and math.isnan(found.spearman)
    assert found.teacher_ties == 1 and found.student_ties == 0
    assert found.slope == 0


def test_a_sigmoid_shows_as_saturation():
    raw = np.random.default_rng(0).normal(size=1000) * 20
    assert saturation(raw) < 0.01
    assert saturation(1 / (1 + np.exp(-raw))) > 0.5
    assert saturation(np.full(4, 2.0)) == 1


@pytest.mark.parametrize(
    ("scores", "share"),
    [
        ([0.0, 0.0009, 0.5, 1.0], 1 / 4),  # a thousandth of the range is an end
        ([0.0, 0.0011, 0.5, 1.0], 0),
        ([-1.0, 0.5, 0.9991, 1.0], 1 / 4),
        ([-1.0, 0.5, 0.9979, 1.0], 0),
        ([0.0, 0.0, 1.0], 1 / 3),
        ([0.0, 1.0], 0),  # one at each end is no heap
        ([0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0], 2 / 8),
        ([3.0], 0),
        ([3.0, 3.0], 1),
    ],
)
def test_saturation_by_hand(scores, share):
    assert saturation(np.array(scores)) == pytest.approx(share)


def test_ties_and_what_the_line_explains_by_hand():
    teacher = [np.array([1.0, 1.0, 2.0, 1.0]), np.array([1.0, 2.0])]
    student = [np.array([0.0, 3.0, 4.0, 3.0]), np.array([2.0, 2.0])]
    found = agreement(teacher, student)
    assert found.teacher_ties == 3 / 7 and found.student_ties == 2 / 7
    x, y = (np.concatenate(one) for one in (teacher, student))
    assert found.r_squared == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


def test_faults_are_named_beyond_their_limits():
    sound = dataclasses.replace(
        agreement(_lists(0), _lists(0)),
        teacher_ties=0.1,
        student_ties=0.1,
        teacher_saturation=0.05,
        student_saturation=0.05,
        slope=0.0,
    )
    assert find_faults(sound) == []
    for field, words in (
        ("teacher_ties", "The teacher gives 11% of the pairs of a list equal"),
        ("student_ties", "The student gives 11% of the pairs"),
        ("teacher_saturation", "11% of the teacher's scores lie at an end"),
        ("student_saturation", "11% of the student's scores lie at an end"),
    ):
        [said] = find_faults(dataclasses.replace(sound, **{field: 0.11}))
        assert words in said
    assert "negative" in find_faults(dataclasses.replace(sound, slope=-1e-9))[0]
    # Of one that has collapsed nothing else is said.
    flat = dataclasses.replace(sound, teacher_ties=1, teacher_saturation=1.0)
    assert find_faults(flat) == [
        "The teacher has collapsed: it scores all documents alike."
    ]
    both = dataclasses.replace(flat, student_ties=0.5)
    assert len(find_faults(both)) == 2


def test_grades_are_not_clipped_scores():
    grades = np.repeat([0.0, 1.0, 2.0, 3.0], 25)
    assert saturation(grades) == 0
    clipped = np.clip(np.random.default_rng(0).normal(size=100), -0.5, 0.5)
    assert saturation(clipped) > 0.5


@pytest.mark.parametrize("constant", [0.1, 0.3, 2.0])
def test_a_constant_student_explains_nothing(constant):
    found = agreement([np.arange(3.0)], [np.full(3, constant)])
    assert math.isnan(found.r_squared)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30), st.integers(0, 99))
def test_the_line_is_numpys(x, seed):
    x = np.array(x)
    if np.ptp(x) < 1e-3:
        return
    y = np.random.default_rng(seed).normal(size=len(x))
    np.testing.assert_allclose(
        fit_affine(x, y), np.polyfit(x, y, 1), rtol=1e-6, atol=1e-6
    )


def test_different_lists_are_refused():
    with pytest.raises(ValueError, match="same lists"):
        agreement([np.zeros(2)], [np.zeros(3)])
    with pytest.raises(ValueError, match="no document"):
        agreement([], [])


def test_every_field_is_a_number():
    found = agreement(_lists(2), _lists(3))
    assert all(
        isinstance(one, int | float) for one in dataclasses.asdict(found).values()
    )
