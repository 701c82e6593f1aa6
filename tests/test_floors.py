"""The package's floors: a module imports from its own room or from rooms on floors below it, and never in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "kdnb"

FLOORS = (
    {"errors", "rehearsal", "choices"},
    {"progress", "usercode", "processes"},
    {"live", "storage", "intervals", "losses", "models", "generators"},
    {"randomness", "metrics", "methods", "attacks", "reports", "checks"},
    {"data", "runs"},
    {"samplers"},
    {"training", "parameters"},
    {"studies", "runner"},
    {"plots", "api"},
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


def test_the_check_sees_an_import_inside_a_function(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "def f():\n    from kdnb.runs import start_run\n    import kdnb.losses.kd\n    from kdnb import parameters\n"
    )
    assert imports(path) == {"runs", "losses.kd", "parameters"} and imports(path, everywhere=False) == set()
