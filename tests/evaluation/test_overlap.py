"""chrF and ROUGE-L beside the tools that define them."""

from afm_mlx.evaluation.overlap import chrf, rouge_l

import pytest


@pytest.mark.parametrize(
    ("answer", "reference", "percent", "longest"),
    [  # by sacrebleu 2.6.0 (CHRF()) and rouge-score 0.1.2 (rougeL, no stemmer)
        ("The cat sat on the mat.", "The cat is on the mat.", 67.17273492330233, 0.8333333333),
        ("Lunch moved to 13:00", "Lunch at 13:00, bus is late", 27.11970024301812, 0.5),
        ("the the the", "the cat the dog", 20.192012937706416, 0.5714285714),
        ("Das Fenster ist offen", "The window is open", 9.761781052697874, 0.0),
        (
            "Choir meets Friday at 19:30 in the gym",
            "The choir will rehearse on Friday at 19:30 in the school gym",
            43.1248123007876,
            0.7272727273,
        ),
        ("ab", "abc", 63.636363636363626, 0.0),  # shorter than six characters
        ("a", "b", 0.0, 0.0),
        ("", "abc", 0.0, 0.0),
    ],
)
def test_as_the_tools_have_it(answer: str, reference: str, percent: float, longest: float) -> None:
    assert 100 * chrf(answer, reference) == pytest.approx(percent)
    assert rouge_l(answer, reference) == pytest.approx(longest)


def test_the_reference_itself_is_whole() -> None:
    assert chrf("Lunch at 13:00", "Lunch  at\n13:00") == 1
    assert rouge_l("Lunch at 13:00", "lunch: at 13.00!") == 1
    assert rouge_l("", "") == 0
