"""One list of versions: pyproject.toml asks, requirements.lock fixes, environment.yml points to the lock."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def blocks() -> list[str]:
    """The lock's requirements, each with its hashes on one logical line."""
    joined = re.sub(r"\\\n\s*", " ", LOCK)
    return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


PINS: dict[str, list[Version]] = {}
for block in blocks():
    pin = Requirement(block.split(" --hash")[0])
    PINS.setdefault(normal(pin.name), []).append(Version(next(iter(pin.specifier)).version))

ASKED = [
    Requirement(line)
    for lines in (
        PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"].values(),
        *PROJECT["dependency-groups"].values(),
    )
    for line in lines
]


def test_the_conda_environment_holds_python_pip_uv_and_the_lock():
    assert ENVIRONMENT["name"] == "kdnb" and ENVIRONMENT["channels"] == ["conda-forge"]
    *conda, last = ENVIRONMENT["dependencies"]
    assert [re.split("[=<>]", name)[0] for name in conda] == ["python", "pip", "uv"]
    assert last == {"pip": ["-r requirements.lock"]}


def test_the_conda_python_is_one_that_the_project_supports():
    (python,) = [name for name in ENVIRONMENT["dependencies"] if str(name).startswith("python=")]
    assert Version(python.split("=")[1]) in SpecifierSet(PROJECT["project"]["requires-python"])


@pytest.mark.parametrize("name", ["environment.yml", "requirements.lock", "pyproject.toml"])
def test_no_address_is_written_down(name):
    text = (ROOT / name).read_text()
    assert "://" not in text and not re.search(r"--(extra-)?index-url|--find-links|file:|registry", text)


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_every_direct_dependency_is_pinned_at_a_version_that_satisfies_it(asked):
    versions = PINS.get(normal(asked.name), [])
    assert versions and all(version in asked.specifier for version in versions)


def test_every_line_of_the_lock_is_an_exact_version_with_hashes():
    for block in blocks():
        requirement, *hashes = block.split(" --hash=")
        assert re.match(r"^[A-Za-z0-9._-]+(\[[^\]]*\])?==[^ ;]+( ;.*)?$", requirement.strip()), requirement
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", text.strip()) for text in hashes), requirement


def test_what_uv_installs_is_what_the_lock_fixes():
    """`[tool.uv] constraint-dependencies` is the lock without its hashes: `uv run` keeps no lock of its own in git."""
    locked = sorted(re.sub(r"\s+", " ", block.split(" --hash")[0]).strip() for block in blocks())
    assert sorted(PROJECT["tool"]["uv"]["constraint-dependencies"]) == locked, (
        "they differ; `uv run inv lock` writes both"
    )


def test_the_build_backend_and_what_it_needs_are_fixed():
    (backend,) = PROJECT["build-system"]["requires"]
    pins = PROJECT["tool"]["uv"]["build-constraint-dependencies"]
    assert backend in pins, "`uv run inv lock` writes the pins of the build backend"
    assert all("==" in pin for pin in pins)


def test_nothing_depends_on_the_day():
    assert "exclude-newer" not in PROJECT["tool"]["uv"]  # an index that serves no dates would break it


def test_every_installed_version_is_that_of_the_lock():
    """Of direct and of indirect dependencies, extras included where they are installed."""
    from importlib.metadata import distributions

    found = {normal(one.metadata["Name"]): Version(one.version) for one in distributions() if one.metadata["Name"]}
    wrong = [
        f"{name} {version} (locked: {', '.join(map(str, PINS[name]))})"
        for name, version in sorted(found.items())
        if name in PINS and version not in PINS[name]
    ]
    assert not wrong, (
        f"{'; '.join(wrong)}. `uv sync` installs what requirements.lock fixes (`pip install -r requirements.lock` without uv); "
        "if pyproject.toml asks for something new, `uv run inv lock` first"
    )


def test_the_ci_runs_the_test_command_of_the_readme():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in lines and lines[-1] == "uv run inv test"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
