"""The package's floors: a module imports only from floors under it and from siblings below it, never in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "kdnb"

FLOORS = (
    {
        "errors",
        "paths",
        "files",
        "recipes",
        "progress",
        "randomness",
        "checkpoints",
        "checkpoint_header",
        "importers",
        "runs",
        "crops",
        "data",
        "models",
        "generators",
        "losses",
    },
    {"methods", "samplers", "attacks", "metrics"},
    {
        "training_recipe",
        "evaluation",
        "training",
        "classifiers",
        "comparison",
        "student_phase",
        "datafree",
        "synthesis",
        "softlabels",
        "discovery",
        "archsearch",
        "bounds",
        "softlabel_training",
        "generator_loop",
        "generator_distillation",
        "reuse_study",
        "attack_study",
        "behaviour",
    },
    {
        "parameters",
        "planning",
        "kernel",
        "execute",
        "records",
        "reproducibility",
        "comparing",
        "stored",
        "report",
        "plots",
    },
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"}


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


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_nothing_from_a_floor_above(name):
    own = name.split(".")[0]
    assert own in FLOOR, f"kdnb.{own} is on no floor yet; add it to FLOORS"
    above = {other for other in imports(MODULES[name]) if FLOOR[other.split(".")[0]] > FLOOR[own]}
    assert not above


def test_no_module_imports_itself_through_others():
    TopologicalSorter({name: imports(path, everywhere=False) - {name} for name, path in MODULES.items()}).prepare()


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] in ("losses", "models")])
def test_losses_and_models_know_nothing_of_runs_and_files(name):
    assert not {other.split(".")[0] for other in imports(MODULES[name])} & {
        "runs",
        "checkpoints",
        "files",
        "paths",
        "data",
        "recipes",
    }


def test_packages_that_are_tables_import_nothing_heavy():
    heavy = {"torch", "numpy", "torchvision", "diffusers", "sklearn"}
    for name in ("models", "methods", "data"):
        top = ast.parse((PACKAGE / name / "__init__.py").read_text()).body
        names = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
        names |= {(node.module or "").split(".")[0] for node in top if isinstance(node, ast.ImportFrom)}
        assert not names & heavy, name


def test_the_check_sees_an_import_inside_a_function(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "def f():\n    from kdnb.runs import start_run\n    import kdnb.losses.kd\n    from kdnb import parameters\n"
    )
    assert imports(path) == {"runs", "losses.kd", "parameters"} and imports(path, everywhere=False) == set()
