"""`inv distil`: a run of notebook 04 with one's own teacher, student and data, and nothing else of what that notebook shows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdnb.data.own import FOLDER
from kdnb.errors import InputError
from kdnb.runner.plan import Plan, plan

NOTEBOOK = "04_distillation"
BARE = {  # of the notebook's questions, only whether the method helps
    "seeds": [0],
    "others": [],
    "omitted_class": None,
    "ablations": False,
    "layout": "contiguous",
}


def plan_distillation(
    teacher: str,
    student: str,
    data: str,
    method: str,
    epochs: str | int = 20,
    checkpoint: str = "",
    more: Mapping[str, Any] | None = None,
) -> Plan:
    """The checked run.

    Args:
        teacher, student, method: as the parameters of notebook 04.
        data: a data set's name, or the path of a folder of pictures.
        checkpoint: weights of the teacher; empty: it is trained on the data first.
        more: further parameters of the notebook.
    Raises:
        InputError: as `kdnb.runner.plan.plan`.
    """
    for name, value in (("teacher", teacher), ("student", student), ("data", data)):
        if not value:
            raise InputError(f"give --{name}: inv distil --teacher MODEL --student MODEL --data FOLDER [--method dkd]")
    is_path = "/" in data or Path(data).is_dir()
    if is_path and not data.startswith(FOLDER) and ".py:" not in data:
        data = FOLDER + data
    values = {"teacher": teacher, "student": student, "dataset": data, "method": method, "epochs": epochs}
    return plan(NOTEBOOK, overrides=BARE | values | {"teacher_checkpoint": checkpoint} | dict(more or {}))
