"""How much faster is a step on stored soft labels than a step of plain KD?

    uv run python benchmarks/soft_labels.py

Both train the same student through `kdnb.training.loop.fit` on the private digits, one thread, no evaluation in the timed part; the median of
the epochs after the first is reported. Making the store is timed apart: it is paid once, for all students.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from kdnb import methods
from kdnb.data import load
from kdnb.data.splits import Split
from kdnb.methods.stored_labels import StoredLabels
from kdnb.studies.label_store import StoreConfig, make_store
from kdnb.studies.soft_labels import ReplaySplit, forward_cost
from kdnb.training.loop import fit
from kdnb.training.recipe import Recipe
from kdnb.training.teachers import fresh

STUDENT, TEACHER, EPOCHS, NUM_DRAW = "resnet8w8", "resnet8", 8, 2


def seconds_an_image(split, shown: int, data, **arguments) -> float:
    """Median time of an epoch after the first, per image shown."""
    ends = [time.perf_counter()]
    nothing = Split(data.test.images[:2], data.test.labels[:2])  # evaluation is not what is measured
    fit(
        fresh(STUDENT, data, 0),
        split,
        nothing,
        Recipe(epochs=EPOCHS, batch_size=64, lr=0.01),
        log=lambda **_: ends.append(time.perf_counter()),
        **arguments,
    )
    return statistics.median(b - a for a, b in zip(ends[1:], ends[2:], strict=False)) / shown


def main() -> None:
    torch.set_num_threads(1)
    data = load("digits", 16)
    images, labels, teacher = data.private.images, data.private.labels, fresh(TEACHER, data, 1).eval()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        store = make_store(Path(folder), images, teacher, StoreConfig(num_crops=12, flip=False))
        making = time.perf_counter() - started
    split = ReplaySplit(store, images, labels, 16, NUM_DRAW)
    replay = seconds_an_image(split, len(split), data, method=StoredLabels())
    kd = seconds_an_image(data.private, len(images), data, method=methods.build("kd"), teacher=teacher)
    cost_s, cost_t = forward_cost(fresh(STUDENT, data, 0), (1, 16, 16)), forward_cost(teacher, (1, 16, 16))
    print(f"torch {torch.__version__}, one thread, {STUDENT} from {TEACHER}, 16x16 digits")
    print(f"plain KD      {1e6 * kd:8.0f} microseconds an image")
    print(
        f"stored labels {1e6 * replay:8.0f} microseconds an image, {replay / kd:.2f} of plain KD (multiply-adds: "
        f"{3 * cost_s / (3 * cost_s + cost_t):.2f})"
    )
    print(
        f"making the store of {store.num_crops} crops an image: {making:.1f} s, as long as {making / (kd - replay) / len(images):.0f} epochs save"
    )


if __name__ == "__main__":
    main()
