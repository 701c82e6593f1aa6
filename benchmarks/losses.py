"""What whole-tensor losses and a cheap teacher are worth: ratios measured in one run, printed as a table.

    uv run python benchmarks/losses.py [--repeats 7] [--threads 1]

Times are CPU seconds of this process, median of interleaved repeats after one warm-up; operators are those that reach torch's
dispatcher, backward pass included. The loop below computes the same numbers as the whole-tensor form, which is checked first.
"""

import argparse
import os
import statistics
import time

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--repeats", type=int, default=7)
parser.add_argument("--threads", type=int, default=1)
ARGUMENTS = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(ARGUMENTS.threads)

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from kdnb import methods  # noqa: E402
from kdnb.losses import kd_loss, kd_per_sample, sdd_kd_lskd_loss_released, standardize  # noqa: E402
from kdnb.models import build  # noqa: E402

torch.set_num_threads(ARGUMENTS.threads)


class Operators(TorchDispatchMode):
    """Counts what is dispatched while it is active."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def seconds(parts: dict) -> dict[str, float]:
    """Median CPU seconds of each part, the parts taking turns."""
    spent = {name: [] for name in parts}
    for repeat in range(ARGUMENTS.repeats + 1):
        for name, part in parts.items():
            start = time.process_time()
            part()
            if repeat:
                spent[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in spent.items()}


def operators(part) -> int:
    with Operators() as counter:
        part()
    return counter.count


def show(title: str, parts: dict, against: str) -> None:
    """A table: time and operators of each part, and the time of the part `against` divided by it."""
    times = seconds(parts)
    print(f"\n{title}\n{'':44}{'CPU ms':>10}{'operators':>11}{'ratio':>8}")
    for name, part in parts.items():
        print(f"{name:<44}{1000 * times[name]:>10.2f}{operators(part):>11}{times[against] / times[name]:>8.2f}")


def looped_sdd_kd_lskd(logits_s: Tensor, logits_t: Tensor, labels: Tensor, temperature: float = 2.0) -> Tensor:
    """The released grouping one image after another: rows are made at once, only their sorting into the two groups is a loop."""
    B, _, M = logits_s.shape
    rows_s, rows_t = (logits.permute(2, 0, 1).reshape(M * B, -1) for logits in (logits_s, logits_t))
    rows = kd_per_sample(standardize(rows_s), standardize(rows_t), temperature)
    right = rows_t.argmax(1) == labels.repeat(M)
    same, other = [], []
    for image in range(B):
        part = slice(image * M, (image + 1) * M)
        agree = right[part] if right[image] else ~right[part]  # the host waits for the device here
        same.append(rows[part][agree])
        other.append(rows[part][~agree])
    return sum(torch.cat(group).mean() for group in (same, other) if sum(map(len, group)))


def losses() -> None:
    for B in (64, 256):
        torch.manual_seed(0)
        logits_t, labels = 5 * torch.randn(B, 100, 21), torch.randint(100, (B,))
        labels[::2] = logits_t[::2, :, 0].argmax(1)  # half of the images are right
        logits_s = (logits_t + torch.randn_like(logits_t)).requires_grad_()

        def step(loss, logits_s=logits_s, logits_t=logits_t, labels=labels):
            return torch.autograd.grad(loss(logits_s, logits_t, labels), logits_s)[0]

        difference = (step(looped_sdd_kd_lskd) - step(sdd_kd_lskd_loss_released)).abs().max().item()
        assert difference < 1e-6, difference
        show(
            f"SDD with LSKD, released grouping, B = {B}, 21 regions, with backward (gradients differ by {difference:.0e})",
            {
                "whole tensor": lambda step=step: step(sdd_kd_lskd_loss_released),
                "one image after another": lambda step=step: step(looped_sdd_kd_lskd),
            },
            "one image after another",
        )


def teachers() -> None:
    torch.manual_seed(0)
    teacher, images = build("resnet32x4", 100).eval(), torch.randn(8, 3, 32, 32)
    last, lasting = (
        build("resnet32x4", 100).eval().to(memory_format=torch.channels_last),
        images.to(memory_format=torch.channels_last),
    )
    last.load_state_dict(teacher.state_dict())

    def under(context, model=teacher, given=images):
        with context():
            return model(given)

    show(
        "Teacher forward, ResNet-32x4, 8 images of 32x32",
        {
            "with gradients": lambda: under(torch.enable_grad),
            "no_grad": lambda: under(torch.no_grad),
            "inference mode": lambda: under(torch.inference_mode),
            "inference mode, channels last": lambda: under(torch.inference_mode, last, lasting),
        },
        "with gradients",
    )


def steps() -> None:
    torch.manual_seed(0)
    teacher, student = build("resnet32x4", 100).eval(), build("resnet8x4", 100).train()
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(100, (8,))
    with torch.inference_mode():
        stored = teacher(images, return_features=True)
    stored = stored._replace(logits=stored.logits.clone())

    def features_t() -> nn.Module:
        with torch.inference_mode():
            found = teacher(images, return_features=True)
        return found._replace(logits=found.logits.clone(), final_map=found.final_map.clone())

    def step(method, given):
        terms = method(student(images, return_features=True), given(), labels, 1)
        sum(terms.values()).backward()

    bound = {name: methods.build(name).bind(student, teacher, (3, 32, 32), 100, 8) for name in ("kd", "sdd_kd_lskd")}
    show(
        "Student step without the optimiser, ResNet-32x4 to ResNet-8x4, 8 images",
        {
            "KD": lambda: step(bound["kd"], features_t),
            "KD, teacher logits stored": lambda: step(bound["kd"], lambda: stored),
            "SDD with LSKD": lambda: step(bound["sdd_kd_lskd"], features_t),
            "the KD loss alone": lambda: kd_loss(
                torch.randn(8, 100, requires_grad=True), torch.randn(8, 100)
            ).backward(),
        },
        "KD",
    )


if __name__ == "__main__":
    print(
        f"torch {torch.__version__}, {ARGUMENTS.threads} thread(s), {ARGUMENTS.repeats} repeats; ratio: how many times as long the reference takes"
    )
    losses()
    teachers()
    steps()
