"""Which cases of a slow matrix also run in the ordinary part: a few, others with every commit."""

import subprocess
from collections.abc import Sequence
from datetime import date

import pytest

from kdnb.storage.paths import PROJECT


def in_this_run(number: int, count: int) -> set[int]:
    """`count` of `number` cases, spread over all of them; which ones depends on the commit, and without git on the day."""
    try:
        git = ["git", "-C", str(PROJECT), "rev-parse", "HEAD"]
        start = int(subprocess.run(git, capture_output=True, text=True, check=True).stdout[:8], 16)
    except (OSError, subprocess.SubprocessError, ValueError):
        start = date.today().toordinal()
    return {(start + index * number // count) % number for index in range(count)}


def marked(cases: Sequence, ids: Sequence[str], chosen: set[int]) -> list:
    """The cases as pytest's parameters, slow but for the chosen ones."""
    return [
        pytest.param(*case, marks=() if index in chosen else pytest.mark.slow, id=name)
        for index, (case, name) in enumerate(zip(cases, ids, strict=True))
    ]
