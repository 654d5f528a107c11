"""chrF, ROUGE-L and label figures against the values of sacrebleu 2.6.0, rouge-score 0.1.2 and scikit-learn."""

from __future__ import annotations

import pytest

from orchd.train.answers import LabelScore, chrf, label_scores, labels_of, longest_common, rouge_l

PAIRS = [
    ("the cat sat on the mat", "the cat is on the mat", 0.645779, 0.833333),
    ("A short answer.", "A rather longer answer, with more words.", 0.169813, 0.4),
    ("", "nothing said", 0.0, 0.0),
    ("ab", "abcdefgh", 0.234043, 0.0),
    ("xyz", "abc", 0.0, 0.0),
    ("same", "same", 1.0, 1.0),
    ("police killed the gunman", "the gunman police killed today", 0.741686, 0.444444),
]


@pytest.mark.parametrize(("answer", "wanted", "chrf2", "rouge"), PAIRS)
def test_text_figures_are_those_of_the_libraries(answer: str, wanted: str, chrf2: float, rouge: float) -> None:
    assert chrf(answer, wanted) == pytest.approx(chrf2, abs=1e-6)
    assert rouge_l(answer, wanted) == pytest.approx(rouge, abs=1e-6)


def test_letters_of_other_languages_belong_to_words() -> None:
    """rouge-score cuts words at every letter that is not of the English alphabet."""
    assert chrf("olá mundo cão", "olá, mundo cao") == pytest.approx(0.458388, abs=1e-6)
    assert rouge_l("olá mundo cão", "olá, mundo cao") == pytest.approx(2 / 3)


def test_two_empty_answers_are_the_same_and_one_is_not() -> None:
    assert chrf("", "") == rouge_l("", "") == 1
    assert chrf("a", "") == rouge_l("a", "") == 0


def test_the_longest_common_subsequence_is_that_of_the_plain_recursion() -> None:
    def plain(a: str, b: str) -> int:
        if not a or not b:
            return 0
        return plain(a[1:], b[1:]) + 1 if a[0] == b[0] else max(plain(a[1:], b), plain(a, b[1:]))

    for one, other in (("abcbdab", "bdcaba"), ("aaaa", "aa"), ("abc", "cab"), ("x" * 5, "y"), ("abab", "baba")):
        assert longest_common(one, other) == plain(one, other)


def test_labels_are_found_with_their_precision_recall_and_f1() -> None:
    found = label_scores(["a", "b", "c"], ["a", "b", "b", "b", "a", "x"], ["a", "a", "b", "b", "c", "a"])
    assert found == (
        LabelScore(label="a", precision=0.5, recall=1 / 3, f1=0.4, examples=3),
        LabelScore(label="b", precision=2 / 3, recall=1, f1=0.8, examples=2),
        LabelScore(label="c", precision=0, recall=0, f1=0, examples=1),
    )


def test_answers_are_labels_when_few_short_ones_come_again_and_again() -> None:
    assert labels_of(["yes", "no", "no"] * 4) == ("no", "yes")
    assert labels_of(["yes", "no"] * 4) == ()  # eight are too few to say
    assert labels_of(["yes"] * 12) == ()  # one label tells nothing
    assert labels_of([f"answer {at // 2}" for at in range(20)]) == ()  # each twice
    assert labels_of(["x" * 65, "no"] * 10) == ()
