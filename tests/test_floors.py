"""The package's floors: a module imports from its own room or from rooms on floors below it, and never in a circle."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "kdnb"

FLOORS = (
    {"errors", "rehearsal", "choices", "randomness", "plots"},
    {"progress", "usercode", "processes", "live", "intervals", "checks", "losses", "generators"},
    {"storage", "models", "metrics"},
    {"data", "methods", "attacks", "runs", "reports"},
    {"samplers", "training", "parameters"},
    {"studies", "runner"},
    {"api"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"}


def room(module: str) -> str:
    return module.split(".")[0]


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Modules of the package that a file imports, relative to the package; without `everywhere` only those at its top."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    inside = {name.removeprefix("kdnb.") for name in found if name.startswith("kdnb.")}
    return {name if name in MODULES else name.rpartition(".")[0] for name in inside} - {""}


def test_every_room_has_a_floor_and_every_floor_is_lived_on():
    assert FLOOR.keys() == {room(name) for name in MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_from_its_own_room_or_from_floors_below(name):
    wrong = {
        other
        for other in imports(MODULES[name])
        if room(other) != room(name) and FLOOR[room(other)] >= FLOOR[room(name)]
    }
    assert not wrong


def test_no_module_imports_itself_through_others():
    TopologicalSorter({name: imports(path, everywhere=False) - {name} for name, path in MODULES.items()}).prepare()


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) in ("losses", "models")])
def test_losses_and_models_know_nothing_of_runs_and_files(name):
    assert {room(other) for other in imports(MODULES[name])} <= {room(name), "errors", "usercode"}


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_no_test_module_imports_another(path):
    """What several share is in tests/material.py, or in a file of their folder that holds no tests."""
    imported = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom | ast.Import)]
    names = {f"{getattr(node, 'module', '')}.{alias.name}" for node in imported for alias in node.names}
    assert not [name for name in names if ".test_" in name and "tests." in name]


def test_faces_of_rooms_import_nothing_heavy():
    """A wrong name is refused without torch: who reads a table of names does not load what the names stand for."""
    heavy = {"torch", "numpy", "torchvision", "diffusers", "sklearn"}
    for path in PACKAGE.glob("*/__init__.py"):
        if path.parent.name == "losses":  # its face is the list of all losses
            continue
        top = ast.parse(path.read_text()).body
        names = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
        names |= {(node.module or "").split(".")[0] for node in top if isinstance(node, ast.ImportFrom)}
        assert not names & heavy, path.parent.name


def test_importing_the_package_changes_nothing_outside_of_it():
    """What must change, changes in a call: figures' style, papermill's handlers, loggers, random state, torch's settings."""
    code = """
import importlib, logging, sys
import diffusers, matplotlib.pyplot, numpy, pandas, papermill.iorw, seaborn, torch, torchvision

def outside():
    return {
        "style": dict(matplotlib.rcParams),
        "tables": pandas.get_option("display.width"),
        "handlers": [scheme for scheme, _ in papermill.iorw.papermill_io._handlers],
        "loggers": {name: logging.getLogger(name).level for name in ("", "papermill", "torch", "diffusers")},
        "random": (torch.random.get_rng_state().tolist(), numpy.random.get_state()[1].tolist()),
        "torch": (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()),
        "errors": sys.excepthook,
    }

before = outside()
for name in sys.argv[1:]:
    importlib.import_module(f"kdnb.{name}")
after = outside()
sys.exit(", ".join(key for key in before if before[key] != after[key]))
"""
    command = [sys.executable, "-c", code, *MODULES]
    found = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert found.stderr.strip() == "", found.stderr


def test_the_check_sees_an_import_inside_a_function(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "def f():\n    from kdnb.runs import start_run\n    import kdnb.losses.kd\n    from kdnb import parameters\n"
    )
    assert imports(path) == {"runs", "losses.kd", "parameters"} and imports(path, everywhere=False) == set()
