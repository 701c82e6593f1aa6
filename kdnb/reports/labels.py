"""Metric names in plain words: what was measured, of what, and how its value is written.

A metric's name is what `results.csv` holds, such as `same_student_top1_unguided`: a measure (`top1`) with words before and after it.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# measure -> (words, whether it is a share that is read as per cent); the first that a name contains is its measure
MEASURES = {
    "judge_agreement": ("judge's agreement", True),
    "agreement": ("teacher's agreement", True),
    "top1": ("top-1 accuracy", True),
    "top1_gain": ("gain in top-1 accuracy", True),
    "ece": ("calibration error (ECE)", True),
    "success": ("success of the attack", True),
    "confidence": ("mean confidence", True),
    "share": ("share", True),
    "known": ("accuracy on known classes", True),
    "novel": ("accuracy on new classes", True),
    "all": ("accuracy on all classes", True),
    "frechet": ("Fréchet distance", False),
    "diversity": ("distance between images of a class", False),
    "flips": ("bits flipped until chance", False),
    "ratio": ("ratio of losses", False),
    "kendall": ("Kendall's tau", False),
    "distance": ("distance", False),
    "spread": ("spread", False),
    "variance": ("variance", False),
    "gain": ("gain in information (nats)", False),
    "elbo": ("evidence lower bound (nats)", False),
    "bound": ("bound (nats)", False),
    "information": ("information (nats)", False),
    "evidence": ("log evidence (nats)", False),
    "likelihood": ("log likelihood (nats)", False),
}
_SPELLED = {"cadr": "CADR", "kd": "KD", "fkd": "FKD", "ferkd": "FerKD", "vid": "VID", "bn": "batch norm", "vae": "VAE"}
_SPELLED |= {"pca": "PCA", "int8": "int8", "aea": "AEA", "none": "none"}
_ALONE = "over all"


class Label(NamedTuple):
    """A metric in words.

    Attributes:
        measure: what was measured, such as "top-1 accuracy".
        subject: of what, such as "student, unguided"; "over all" where the name says no more.
        is_share: whether values are in [0, 1] and read as per cent.
    """

    measure: str
    subject: str
    is_share: bool

    def value(self, number: float) -> str:
        """
        >>> label("student_top1").value(0.9424)
        '94.2 %'
        """
        return f"{100 * number:.1f} %" if self.is_share else f"{number:.4g}"


def label(metric: str) -> Label:
    """The words for a metric's name; a name that holds no known measure is its own.

    >>> label("same_student_top1_unguided")
    Label(measure='top-1 accuracy', subject='same student, unguided', is_share=True)
    """
    for name in sorted(MEASURES, key=len, reverse=True):
        found = re.fullmatch(rf"(?:(.+)_)?{name}(?:_(.+))?", metric)
        if found:
            words, is_share = MEASURES[name]
            parts = [" ".join(_SPELLED.get(word, word) for word in part.split("_")) for part in found.groups() if part]
            return Label(words, ", ".join(parts) or _ALONE, is_share)
    return Label(metric.replace("_", " "), _ALONE, False)


def answer(results: Sequence[tuple[str, float]], most: int = 6) -> str:
    """One sentence with the numbers of the measure that most of the results are of; accuracy before all others.

    Args:
        results: (metric, value), in the order of the notebook.
        most: numbers in the sentence.

    >>> answer([("teacher_top1", 0.988), ("student_top1", 0.942), ("frechet_guided", 3.5)])
    'Top-1 accuracy: teacher 98.8 %, student 94.2 %.'
    """
    labels = [(label(metric), value) for metric, value in results]
    if not labels:
        return ""
    counts: dict[str, int] = {}
    for found, _ in labels:
        counts[found.measure] = counts.get(found.measure, 0) + 1
    accuracy = MEASURES["top1"][0]
    chosen = accuracy if accuracy in counts else max(counts, key=counts.__getitem__)
    own = [(found, value) for found, value in labels if found.measure == chosen]
    words = [f"{found.subject} {found.value(value)}" for found, value in own[:most]]
    rest = f" and {len(own) - most} more below" if len(own) > most else ""
    return f"{chosen[:1].upper()}{chosen[1:]}: {', '.join(words)}{rest}."


class Bar(NamedTuple):
    """One line of the chart of accuracies.

    Attributes:
        subject: of what.
        percent: its mean over seeds, in per cent.
        text: the value as it is written.
        is_limit: whether it is a level to compare with (the teacher, or noise), not a student.
    """

    subject: str
    percent: float
    text: str
    is_limit: bool


def accuracy_bars(means: Iterable[tuple[str, str, float]]) -> list[Bar]:
    """The accuracies among (prefix, metric, mean), the best first; the prefix tells experiments apart and may be empty."""
    bars = []
    for prefix, metric, mean in means:
        found = label(metric)
        if found.measure == MEASURES["top1"][0] and 0 <= mean <= 1:
            subject = ", ".join(part for part in (found.subject, prefix) if part)
            limit = "teacher" in found.subject.split() or found.subject.endswith("noise")
            bars.append(Bar(subject, 100 * mean, found.value(mean), limit))
    return sorted(bars, key=lambda bar: -bar.percent)
