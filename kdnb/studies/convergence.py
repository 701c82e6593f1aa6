"""Does a reused generator converge faster than a new one? Runs over modes, branches and seeds, and the numbers that answer."""

from collections.abc import Mapping, Sequence

from kdnb.data.tensors import Dataset
from kdnb.generators.reusable import export_parts
from kdnb.rehearsal import cut
from kdnb.studies.reusable_generator import Task, generator_config, generator_task, reused_branch
from kdnb.training.teachers import Trained, teacher_for


def convergence(task: Task, target: float) -> dict[str, float | None]:
    """How fast one run got where, in numbers that can be compared between runs.

    Args:
        target: test top-1 that counts as reached.
    Returns:
        first: batch-norm + one-hot loss, unweighted, over the inner steps of round 1 (before the adversarial term exists); round_2,
        last: the same of rounds 2 and last; area: its mean over all inner steps; top1: of the student after the last round;
        mean_top1: over all rounds; rounds_to_target, seconds_to_target: of the first round that reached the target, None if none did
        (seconds as measured when the run was made, without evaluation).
    """
    per_round = [row["bn"] + row["oh"] for row in task.history]
    reached = next((row for row in task.history if row.get("top1", 0.0) >= target), None)
    scores = [row["top1"] for row in task.history if "top1" in row]
    return {
        "first": per_round[0],
        "round_2": per_round[min(1, len(per_round) - 1)],
        "last": per_round[-1],
        "area": sum(per_round) / len(per_round),
        "top1": scores[-1],
        "mean_top1": sum(scores) / len(scores),
        "rounds_to_target": reached["epoch"] if reached else None,
        "seconds_to_target": reached["elapsed"] if reached else None,
    }


def reuse_study(
    data: Dataset,
    teacher: str,
    next_teacher: str,
    student: str,
    modes: Sequence[str],
    seeds: Sequence[int],
    values: Mapping,
    target: float,
    branch_rules: Sequence[str] = ("gan1",),
) -> tuple[list[dict], dict[tuple[str, int], Task]]:
    """First task, then the second in every setting, for every seed: teachers, generators and students all differ between seeds.

    A setting is `anew`, or a reuse mode with a branch rule, "reuse_common gan2"; the rule is left out where there is one only.

    Args:
        values: parameters as `generator_config` takes them, `next_epochs`, and where they are given `teacher_checkpoint` and
            `next_teacher_checkpoint` (then every seed has the same teachers), `teacher_split` (default: private), `teacher_epochs`.
        branch_rules: of `reused_branch`. Rules that choose the same branch share their run.
    Returns:
        One row a setting and seed: `setting`, `seed`, `branch` (that was reused) and what `convergence` measures; the tasks by
        (setting, seed).
    """
    choices = [(mode, rule) for mode in modes for rule in (branch_rules if mode != "anew" else (None,))]
    rows, tasks = [], {}
    for seed in cut(list(seeds), "seed", most=1):
        source = _teacher(data, teacher, values, seed, "teacher")
        target_teacher = _teacher(data, next_teacher, values, seed, "next teacher")
        config = generator_config(data, values, teacher=teacher)
        first = generator_task(data, source, student, config, seed=seed, description=f"first task, seed {seed}")
        config = generator_config(data, values, teacher=next_teacher, epochs=values["next_epochs"])
        for mode, rule in choices:
            setting = mode if rule is None or len(branch_rules) == 1 else f"{mode} {rule}"
            branch = rule and reused_branch(first, source.model, rule, seed)
            parts = export_parts(first.generator, branch) if branch else None
            how = {"mode": mode, "parts": parts, "seed": seed, "description": f"{setting}, seed {seed}"}
            tasks[setting, seed] = generator_task(data, target_teacher, student, config, **how)
            row = {"setting": setting, "seed": seed, "branch": branch, "first_task_top1": first.top1}
            rows.append(row | convergence(tasks[setting, seed], target))
    return rows, tasks


def _teacher(data: Dataset, name: str, values: Mapping, seed: int, title: str) -> Trained:
    """The `teacher` or the `next teacher` of a seed, with the checkpoint that the values name for it, if any."""
    return teacher_for(
        name,
        data,
        values.get(f"{title.replace(' ', '_')}_checkpoint", ""),
        seed,
        split=values.get("teacher_split", "private"),
        epochs=values.get("teacher_epochs", 0),
        description=f"{title}, seed {seed}",
    )
