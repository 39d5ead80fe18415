"""How much of a reference an answer has: chrF (Popović 2015) and ROUGE-L (Lin 2004).

chrF as sacrebleu's chrF2: character n-grams up to 6, blanks left out, recall counts double.
ROUGE-L as Google's rouge-score without stemming: the longest common subsequence of words.
"""

import re
from collections import Counter

ORDER, BETA = 6, 2


def chrf(answer: str, reference: str) -> float:
    """Between 0 and 1; sacrebleu gives a hundred times that."""
    ours, theirs = "".join(answer.split()), "".join(reference.split())
    precision = recall = 0.0
    orders = min(ORDER, len(ours), len(theirs))
    for n in range(1, orders + 1):
        found, wanted = _grams(ours, n), _grams(theirs, n)
        common = (found & wanted).total()
        precision += common / found.total()
        recall += common / wanted.total()
    if not precision + recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall) / orders


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence, between 0 and 1."""
    ours, theirs = _words(answer), _words(reference)
    longest = [0] * (len(theirs) + 1)
    for word in ours:
        before = longest[:]
        for j, other in enumerate(theirs):
            longest[j + 1] = before[j] + 1 if word == other else max(longest[j], before[j + 1])
    return 2 * longest[-1] / (len(ours) + len(theirs)) if ours or theirs else 0.0


def _grams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
