"""When does guidance pay? Student top-1 on digits by prior domain and guidance rule, at equal images; one CSV row a run.

    uv run python benchmarks/guidance.py report [--seeds 0 1 2 3 4] [--out outputs/published/guidance_digits.csv]
    uv run python benchmarks/guidance.py tune --seeds 100 101 --domains mixed foreign --out tuning.csv
    uv run python benchmarks/guidance.py ablate --seeds 0 1 2 --domains mixed --out outputs/published/guidance_ablation.csv
    uv run python benchmarks/guidance.py table [--out outputs/published/guidance_digits.csv]

`report` and `ablate` read the test split, once; `tune` evaluates students on the private split. Rows that the file already has are
not made again, so a stopped run continues. `table` prints means, spreads and paired differences of the rows that are there.

A seed varies labels, initial noise and student; teacher, judge and priors are those of seed 0. 500 images a student in ten rounds,
DPM-Solver++ with ten steps, ResNet-8 of half width, one thread.
"""

import argparse
import csv
import dataclasses
import os
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("what", choices=("report", "tune", "ablate", "table"))
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
parser.add_argument("--domains", nargs="+", default=["same", "skewed", "mixed", "foreign"])
parser.add_argument("--rules", nargs="+", help="names of settings to run; default: all")
parser.add_argument("--out", type=Path, default=Path("outputs/published/guidance_digits.csv"))
parser.add_argument("--threads", type=int, default=1)
ARGUMENTS = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(ARGUMENTS.threads)

import torch  # noqa: E402

from kdnb.data import load  # noqa: E402
from kdnb.data.domains import prior_domain  # noqa: E402
from kdnb.intervals import paired_difference  # noqa: E402
from kdnb.samplers.cadr import SEPARATE  # noqa: E402
from kdnb.studies.fast_ad import OnlineConfig  # noqa: E402
from kdnb.studies.guidance import (  # noqa: E402
    Networks,
    guidance_rules,
    guided_student,
    mean_and_spread,
    paired_rows,
    without_each_part,
)
from kdnb.studies.prior import trained_prior  # noqa: E402
from kdnb.training.teachers import teacher_recipe, train_or_load  # noqa: E402

torch.set_num_threads(ARGUMENTS.threads)
COLUMNS = ("seed", "domain", "rule", "top1", "agreement", "judge", "frechet", "seconds", "student_seconds")


def tuning_grid() -> dict:
    """Few settings around the first guess, one constant moved at a time, and both baselines at two step shares."""
    moves = {
        "separate": {},
        "separate no gate": {"gate": "constant"},
        "separate eta 0.6": {"eta": 0.6},
        "separate eta 1.5": {"eta": 1.5},
        "separate bn 0.4": {"bn_weight": 0.4},
        "separate bn 1.5": {"bn_weight": 1.5},
        "separate ce 2.5": {"ce_weight": 2.5},
        "separate views 4": {"views": 4},
    }
    grid = {name: dataclasses.replace(SEPARATE, **changes) for name, changes in moves.items()}
    for eta in (0.6, 1.0):
        rules = guidance_rules(eta)
        grid |= {f"{name} eta {eta}": rules[name] for name in ("CADR", "constant")}
    return grid


def stored_rows() -> list[dict]:
    """The rows of the file, numbers as numbers and empty fields as None."""
    with ARGUMENTS.out.open(newline="") as file:
        return [
            {
                name: text if name in ("domain", "rule") else (float(text) if text else None)
                for name, text in row.items()
            }
            for row in csv.DictReader(file)
        ]


def print_table() -> None:
    """Mean, standard deviation and n of every setting; `separate` minus each other rule with its 95 % interval, in points."""
    rows = stored_rows()
    metrics = COLUMNS[3:]
    found = {metric: mean_and_spread(rows, metric) for metric in metrics}
    for key, (_, _, n) in found["top1"].items():
        cells = (
            f"{metric} {found[metric][key][0]:.3f} +- {found[metric][key][1]:.3f}"
            for metric in metrics
            if key in found[metric]
        )
        print(*key, f"n={n}", *cells, sep="  ")
    for domain, rule in found["top1"]:
        pair = paired_rows(rows, domain, "separate", rule)
        if rule != "separate" and pair:
            gain = paired_difference(pair, "separate", rule)
            print(
                f"{domain}: separate - {rule} = {100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}], n={gain.n}"
            )


def main() -> None:
    """Run what is asked for, row by row."""
    data = load("digits", 16)
    teacher = train_or_load("resnet8", data, teacher_recipe(data), seed=0, description="teacher")
    judge = train_or_load("vgg8q", data, teacher_recipe(data, lr=0.05), seed=0, split="judge", description="judge")
    networks = Networks(teacher.model, judge.model, "resnet8w8")
    online = OnlineConfig(
        epochs=10,
        images_per_epoch=50,
        student_steps=30,
        buffer_size=500,
        milestones=(6, 8),
        balanced=True,
        crop_padding=data.crop_padding,
        eval_every=10,
    )
    settings = {"report": guidance_rules, "tune": tuning_grid}.get(
        ARGUMENTS.what, lambda: without_each_part(SEPARATE)
    )()
    if ARGUMENTS.what == "report":
        settings |= {"public": None, "noise": None}
    evaluated_on = data.private if ARGUMENTS.what == "tune" else data.test
    done = set()
    if ARGUMENTS.out.is_file():
        done = {(int(row["seed"]), row["domain"], row["rule"]) for row in stored_rows()}
    else:
        ARGUMENTS.out.parent.mkdir(parents=True, exist_ok=True)
        ARGUMENTS.out.write_text(",".join(COLUMNS) + "\n")
    worlds = {}
    for name in ARGUMENTS.domains:
        domain = prior_domain(data, name)
        worlds[name] = domain, trained_prior(data, steps=850, batch_size=32, lr=8e-3, domain=domain)[0]
        print(domain, flush=True)
    for seed in ARGUMENTS.seeds:
        for name, (domain, prior) in worlds.items():
            for rule in ARGUMENTS.rules or settings:
                where = "none" if rule == "noise" else name
                if (seed, where, rule) in done:
                    continue
                row = guided_student(
                    data,
                    networks,
                    rule,
                    online,
                    prior=prior,
                    guidance=settings[rule],
                    domain=domain,
                    seed=seed,
                    evaluated_on=evaluated_on,
                )
                row["domain"] = where
                values = [row[column] for column in COLUMNS]
                values = [f"{value:.4f}" if isinstance(value, float) else value for value in values]
                with ARGUMENTS.out.open("a", newline="") as file:
                    csv.writer(file, lineterminator="\n").writerow(values)
                done.add((seed, where, rule))
                print(*values, flush=True)


if __name__ == "__main__":
    print_table() if ARGUMENTS.what == "table" else main()
