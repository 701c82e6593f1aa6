"""kdnb.live: a misspelt name in a parameters cell that runs in a live kernel."""

import subprocess
import sys

import pytest

from kdnb.errors import InputError
from kdnb.parameters import collect

CELL = 'epochs: int = 20  # passes\ndataset: str = "digits"  # data'


def namespace(*cells):
    """What a live kernel holds after these cells."""
    found = {"In": ["", *cells, "p = parameters.collect(globals())"]}
    for cell in cells:
        exec(cell, found)
    return found


def test_the_names_of_a_parameters_cell_are_collected():
    assert collect(namespace(CELL)) == {"epochs": 20, "dataset": "digits"}


@pytest.mark.parametrize("line", ["epoch = 5", "epoch: int = 5  # passes", "epoch = 2 + 3"])
def test_a_misspelt_name_in_the_parameters_cell_is_refused_with_the_nearest(line):
    with pytest.raises(InputError, match="no parameter 'epoch'; did you mean 'epochs'"):
        collect(namespace(CELL, f"{CELL}\n{line}"))


def test_a_name_like_no_other_in_the_parameters_cell_is_refused():
    with pytest.raises(InputError, match="no parameter 'qqq'; correct the name"):
        collect(namespace(f"{CELL}\nqqq = 1"))


def test_a_misspelt_name_in_a_cell_of_its_own_is_refused():
    with pytest.raises(InputError, match="no parameter 'epoch'; did you mean 'epochs'"):
        collect(namespace(CELL, "epoch = 5"))


def test_once_corrected_the_cell_is_good_though_the_old_name_is_still_there():
    found = namespace(f"{CELL}\nepoch = 5", "epoch = 6", f"{CELL}\nepochs = 7")
    assert found["epoch"] == 6 and collect(found).epochs == 7


@pytest.mark.parametrize(
    "cell", ["n = 3", "import os\nepoch = 5", "%matplotlib inline", "epoch = len('abc')", "lr = 0.5"]
)
def test_other_cells_are_none_of_our_business(cell):
    found = {"In": ["", CELL, cell], "epochs": 20}
    assert collect(found).epochs == 20


def test_without_a_history_the_annotated_names_are_looked_at():
    with pytest.raises(InputError, match="no parameter 'epoch'; did you mean 'epochs'"):
        collect({"epochs": 20, "epoch": 5, "__annotations__": {"epochs": int, "epoch": int}})


# --- errors --------------------------------------------------------------------------------------------------------------------

SESSION = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell("epochs: int = 20")
shell.run_cell("from kdnb import parameters")
shell.run_cell("epochs: int = -1")
found = shell.run_cell("p = parameters.collect(globals())")
assert type(found.error_in_exec).__name__ == "InputError"
shell.run_cell("1 / 0")
"""


def test_ipython_shows_bad_input_in_one_sentence_and_other_errors_whole():
    done = subprocess.run([sys.executable, "-c", SESSION], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ours, rest = done.stdout.split("Traceback", 1)[0], done.stdout
    assert "InputError: epochs must be a whole number" in ours and "collect(globals())" not in ours
    assert "ZeroDivisionError" in rest
