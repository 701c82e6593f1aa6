"""kdnb.reports.labels: metrics in plain words."""

import doctest

import pytest

from kdnb.reports import labels
from kdnb.reports.labels import accuracy_bars, answer, label


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(labels) == (0, doctest.testmod(labels).attempted) and doctest.testmod(labels).attempted == 3


@pytest.mark.parametrize(
    ("metric", "measure", "subject"),
    [
        ("top1", "top-1 accuracy", "over all"),
        ("student_top1_cadr", "top-1 accuracy", "student, CADR"),
        ("teacher_judge_agreement", "judge's agreement", "teacher"),
        ("top1_gain", "gain in top-1 accuracy", "over all"),
        ("known_with_relation", "accuracy on known classes", "with relation"),
        ("something_else", "something else", "over all"),
    ],
)
def test_a_name_becomes_a_measure_and_its_subject(metric, measure, subject):
    assert label(metric)[:2] == (measure, subject)


def test_numbers_that_are_no_shares_stay_numbers():
    assert label("frechet_guided").value(3.97512) == "3.975"


def test_without_accuracies_the_answer_is_of_the_commonest_measure():
    assert answer([("flips_real", 7.5), ("flips_noise", 13), ("start_ratio", 0.3)]).startswith(
        "Bits flipped until chance: real 7.5"
    )
    assert answer([]) == ""


def test_a_long_answer_says_how_many_are_left_out():
    assert answer([(f"top1_{name}", 0.5) for name in "abcdefgh"], most=3).endswith("c 50.0 % and 5 more below.")


def test_bars_are_accuracies_alone_best_first_with_their_limits():
    bars = accuracy_bars(
        [
            ("", "teacher_top1", 0.99),
            ("", "student_top1_noise", 0.3),
            ("lr=1", "student_top1", 0.9),
            ("", "frechet", 0.5),
        ]
    )
    assert [(bar.subject, bar.is_limit) for bar in bars] == [
        ("teacher", True),
        ("student, lr=1", False),
        ("student, noise", True),
    ]
    assert bars[1].percent == pytest.approx(90) and bars[1].text == "90.0 %"
