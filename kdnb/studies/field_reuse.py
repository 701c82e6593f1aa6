"""Does a generator that was trained for one teacher help with the next one, whichever method trained it?"""

from collections.abc import Sequence

from torch import Tensor

from kdnb.data.tensors import Dataset
from kdnb.generators.reusable import Reuse
from kdnb.studies.datafree_run import datafree_run
from kdnb.training.teachers import Trained


def reuse_in_field(
    names: Sequence[str],
    data: Dataset,
    teacher: Trained,
    next_teacher: Trained,
    student: str,
    modes: Sequence[str] = ("anew", "reuse_common"),
    seed: int = 0,
) -> list[dict]:
    """A first task with each method, then a second one for the next teacher in every mode.

    Args:
        names: of `choices.REUSABLE_METHODS`; their generator has two branches and a decoder here, in both tasks.
        modes: of `generators.reusable.MODES`; the reuse modes load the first branch and the decoder of the first task.
    Returns:
        One row a method and mode of the second task: `method`, `mode`, `seed`, `first_loss` (weighted, mean over the generator's steps in
        round 1), `last_loss`, `top1`, and `first_task`, the top1 of the first task's student.

    CMI starts every batch from new weights; in a reuse mode it starts every batch from the loaded parts.
    """
    rows = []
    for name in names:
        first = datafree_run(name, data, teacher, student, reuse=Reuse(), seed=seed)
        assert first.generator is not None
        parts = parts_of(first.generator)
        for mode in modes:
            reuse = Reuse(mode, None if mode == "anew" else parts)
            made = datafree_run(name, data, next_teacher, student, reuse=reuse, seed=seed)
            losses = {"first_loss": made.history[0]["loss"], "last_loss": made.history[-1]["loss"]}
            rows.append(
                {"method": name, "mode": mode, "seed": seed} | losses | {"top1": made.top1, "first_task": first.top1}
            )
    return rows


def parts_of(generator: dict[str, Tensor], branch: str = "gan1") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The branch and the decoder in the state dict of a `ReusableGenerator`, as `export_parts` takes them from the network."""
    found = [
        {name.removeprefix(prefix): value for name, value in generator.items() if name.startswith(prefix)}
        for prefix in (f"{branch}.", "decoder.")
    ]
    return found[0], found[1]
