"""What could run foreign code, write elsewhere or open a door, and is not tested where it is implemented.

Elsewhere: pickles (`test_importers`, `data/test_formats`), paths of runs (`test_records`), markup in reports (`test_report`).
"""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from invoke import Context

import tasks
from kdnb.errors import InputError
from kdnb.reports.page import build_report
from kdnb.runner.plan import parse_overrides, plan, read_params
from kdnb.runs import Run
from kdnb.storage.files import read_record, write_record
from tests.material import make_run

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_NOTEBOOKS", str(ROOT / "tests" / "notebooks"))
    monkeypatch.setenv("KDNB_PARAMS", str(tmp_path / "params"))
    monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path / "outputs"))
    (tmp_path / "params" / "standard").mkdir(parents=True)
    return tmp_path


# --- YAML ----------------------------------------------------------------------------------------------------------------------


def test_a_small_number_without_a_dot_is_a_number_in_files_and_on_the_command_line(project):
    (project / "params" / "standard" / "fine.yaml").write_text("lr: 1e-6\n")
    assert plan("fine", "standard").parameters.lr == 1e-6
    assert plan("fine", overrides=parse_overrides(["lr=1e-6"])).parameters.lr == 1e-6


@pytest.mark.parametrize("tag", ["python/object/apply:os.mkdir", "python/object/new:os.mkdir"])
def test_code_in_yaml_is_refused_and_never_runs(project, tag):
    text = f"!!{tag} [{project / 'ran'}]"
    (project / "params" / "standard" / "fine.yaml").write_text(f"epochs: {text}\n")
    with pytest.raises(InputError, match="fine.yaml is no YAML"):
        read_params("fine", "standard")
    with pytest.raises(InputError, match="epochs can't be read"):
        parse_overrides([f"epochs={text}"])
    assert not (project / "ran").exists()
    yaml.unsafe_load(text)  # the payload is a real one
    assert (project / "ran").exists()


# --- paths ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../escape", "..", "a/../../b", "/absolute", "a\\b", "C:x", "", ".hidden", "x\0y", "a\nb"]
)
@pytest.mark.parametrize("kind", ["table", "figure"])
def test_no_name_of_a_table_or_figure_leads_out_of_the_run(project, kind, name):
    run = Run("demo", "quick", {"seed": 0}, project / "outputs" / "quick" / "demo" / "seed0")
    before = sorted(project.rglob("*"))

    class Figure:
        def savefig(self, buffer, **_):
            buffer.write(b"picture")

    with pytest.raises(ValueError, match="name is made of"):
        getattr(run, kind)(name, Figure() if kind == "figure" else [{"x": 1}])
    assert sorted(project.rglob("*")) == before


# --- JupyterLab ----------------------------------------------------------------------------------------------------------------


def test_the_lab_listens_on_this_machine_only_and_keeps_its_token(monkeypatch):
    called = []
    monkeypatch.setattr(tasks, "_call", lambda *command, **environment: called.append((command, environment)))
    tasks.lab(Context(remainder=""))
    ((command, environment),) = called
    assert "--ip=127.0.0.1" in command and not environment
    assert not re.search(r"token|password|allow_origin|disable_check_xsrf|allow_remote|allow_root", " ".join(command))


def test_nothing_in_the_repository_switches_the_token_off():
    names = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True).stdout.split(
        "\0"
    )
    files = [
        ROOT / name
        for name in names
        if name and (ROOT / name).suffix in (".py", ".toml", ".yaml", ".yml", ".json", ".cfg", ".sh", ".md", "")
    ]
    if not files:
        pytest.skip("no checkout")
    assert not [path for path in files if re.fullmatch(r"jupyter.*config.*", path.name)]
    setting = re.compile(
        r"(ServerApp|NotebookApp|IdentityProvider|PasswordIdentityProvider)\.(token|password|hashed_password)\b|JUPYTER_TOKEN"
    )
    assert not [
        path.name
        for path in files
        if path.is_file() and path != Path(__file__) and setting.search(path.read_text(errors="replace"))
    ]


# --- reports -------------------------------------------------------------------------------------------------------------------


def test_markup_in_a_parameter_is_text_in_the_report(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path))
    hostile = "<img src=x onerror=alert(1)>\"'"
    folders = [make_run(tmp_path, seed, 0.5, number=seed) for seed in (0, 1)]
    for folder in folders:
        record = read_record(folder / "run.json")
        record["parameters"]["teacher_checkpoint"] = hostile + folder.name
        write_record(folder / "run.json", record)
    html = build_report(folders, tmp_path / "demo", "demo").read_text()
    assert "<img src=x" not in html and "&lt;img src=x onerror=alert(1)&gt;" in html
