"""Differences, intervals and mean curves over seeds."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from kdnb.errors import InputError, check_name


def prediction_interval(values: Sequence[float], probability: float = 0.95) -> tuple[float, float]:
    """Where one more draw of the same normal distribution lies with a given probability.

        mean +- t_{(1 + probability)/2, n-1} s sqrt(1 + 1/n),   s with divisor n - 1

    Args:
        values: n >= 2 numbers. probability: in (0, 1).

    >>> [round(bound, 3) for bound in prediction_interval([1.0, 2.0, 3.0])]
    [-2.968, 6.968]
    """
    from scipy.stats import t

    n, mean = len(values), statistics.fmean(values)
    half = float(t.ppf((1 + probability) / 2, n - 1)) * statistics.stdev(values) * math.sqrt(1 + 1 / n)
    return mean - half, mean + half


class Difference(NamedTuple):
    """Mean of paired differences with its 95 % interval.

    Attributes:
        mean: of the differences.
        low, high: ends of the interval; NaN for one pair, which says nothing about spread.
        n: number of pairs.
    """

    mean: float
    low: float
    high: float
    n: int


def paired_difference(rows: Sequence[Mapping], setting: str, baseline: str, metric: str = "top1") -> Difference:
    """How much better a setting is than a baseline, seed by seed.

        d_i = x_i - y_i;   mean d +- t_{0.975, n-1} s / sqrt(n),   s with divisor n - 1

    The interval assumes normal differences and covers the spread over seeds only: the test images are the same in all runs.

    Args:
        rows: of `compare`, at least with "setting", "seed" and the metric.
    Raises:
        InputError: an unknown setting, or the two were not run with the same seeds.

    Source: Student, 1908.
    """
    import torch

    values = {}
    for name in (setting, baseline):
        check_name("setting", name, dict.fromkeys(row["setting"] for row in rows))
        values[name] = {row["seed"]: row[metric] for row in rows if row["setting"] == name}
    if values[setting].keys() != values[baseline].keys():
        raise InputError(
            f"{setting} and {baseline} were not run with the same seeds: {sorted(values[setting])} and {sorted(values[baseline])}"
        )
    differences = torch.tensor(
        [value - values[baseline][seed] for seed, value in values[setting].items()], dtype=torch.float64
    )
    mean, n = differences.mean().item(), len(differences)
    if n < 2:
        return Difference(mean, math.nan, math.nan, n)
    from scipy.stats import t

    half = float(t.ppf(0.975, n - 1)) * differences.std().item() / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n)


def summarize(
    rows: Sequence[Mapping], metrics: Sequence[str] = ("top1", "omitted_top1", "agreement", "kl_to_teacher")
) -> list[dict]:
    """One row per setting: n, and for each metric that was measured mean and standard deviation (divisor n - 1) over seeds."""
    import torch

    table = []
    for name in dict.fromkeys(row["setting"] for row in rows):
        own = [row for row in rows if row["setting"] == name]
        line = {"setting": name, "n": len(own)}
        for metric in (metric for metric in metrics if metric in own[0]):
            values = torch.tensor([row[metric] for row in own], dtype=torch.float64)
            line |= {metric: values.mean().item(), f"{metric}_sd": values.std().item() if len(own) > 1 else math.nan}
        table.append(line)
    return table


def mean_curve(runs: Sequence[Sequence[Mapping]], value: Callable[[Mapping], float]) -> list[dict]:
    """Mean, lowest and highest of a value over runs of one length: rows `at` (1, 2, ...), `mean`, `low`, `high`, as `plots.bands` draws them."""
    table = [[value(row) for row in rows] for rows in zip(*runs, strict=True)]
    return [
        {"at": at, "mean": sum(values) / len(values), "low": min(values), "high": max(values)}
        for at, values in enumerate(table, start=1)
    ]
