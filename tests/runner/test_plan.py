"""What is refused before a kernel starts. No test here starts one."""

import json
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
import yaml

from kdnb.errors import InputError
from kdnb.runner.notes import notes_on
from kdnb.runner.plan import experiments, param_files, parse_limit, parse_overrides, plan, read_params
from kdnb.storage.checkpoints import save_state
from tests.material import FIXTURES


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Notebooks, parameter files and outputs of its own; nothing may appear in the outputs."""
    monkeypatch.setenv("KDNB_NOTEBOOKS", str(FIXTURES))
    monkeypatch.setenv("KDNB_PARAMS", str(tmp_path / "params"))
    monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("KDNB_DATA", str(tmp_path / "data"))
    (tmp_path / "params" / "standard").mkdir(parents=True)
    yield tmp_path
    assert not (tmp_path / "outputs").exists()


def params(project, text, name="fine", profile="standard"):
    path = project / "params" / profile / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# --- notebooks, profiles, parameters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fine", "fine.ipynb", "notebooks/fine.ipynb", "./notebooks/fine", "fine/", "fi"])
def test_a_notebook_is_found_by_name_with_or_without_folder_and_ending(project, name):
    assert plan(name).path == FIXTURES / "fine.ipynb"


@pytest.mark.parametrize("name", ["fien", "", "re", "../secret"])
def test_an_unknown_notebook_is_refused_with_the_names_there_are(project, name):
    with pytest.raises(InputError, match="unknown notebook .* Allowed: .*fine"):
        plan(name)


def test_values_come_from_the_cell_then_the_file_then_the_command_line(project):
    params(project, "epochs: 5\nlr: 1e-2\n")
    made = plan("fine", "standard", {"lr": 0.5})
    assert (made.parameters.seed, made.parameters.epochs, made.parameters.lr) == (0, 5, 0.5)
    assert made.changed == {"epochs": 5, "lr": 0.5}


def test_none_is_refused_where_the_notebook_does_not_say_optional(project):
    with pytest.raises(InputError, match="epochs must be a whole number .*, got None"):
        plan("fine", overrides={"epochs": None})


def test_defaults_given_again_change_nothing(project):
    assert plan("fine", overrides={"epochs": 2, "lr": "1e-1"}).changed == {}
    assert plan("fine", overrides={"epochs": 2}).folder == plan("fine").folder


def test_other_values_get_another_run_folder(project):
    assert plan("fine", overrides={"epochs": 3}).folder != plan("fine").folder


def test_a_variant_is_an_experiment_of_its_own(project):
    params(project, "epochs: 9\n", name="fine/long")
    assert plan("fine/long", "standard").parameters.epochs == 9
    assert plan("fine/long", "standard").notebook == "fine"
    with pytest.raises(InputError, match="unknown experiment of profile standard 'fine'; did you mean 'fine/long'"):
        plan("fine", "standard")


def test_the_quick_profile_needs_no_file(project):
    assert plan("fine").changed == {}
    params(project, "epochs: 1\n", profile="quick")
    assert plan("fine").changed == {"epochs": 1}


def test_a_profile_lists_its_experiments(project):
    params(project, "", name="raises")
    params(project, "", name="fine/long")
    params(project, "", name="fine/_base")
    assert experiments("standard") == ["fine/long", "raises"]
    assert "fine" in experiments("quick")


def test_an_old_name_is_answered_with_the_new_one(project):
    params(project, "", name="fine/long-and_slow")
    with pytest.raises(InputError, match=r"^fine\.long\.and_slow is now fine/long-and_slow$"):
        plan("fine.long.and_slow", "standard")


@pytest.mark.parametrize(
    "name, message",
    [
        ("fien/long", "unknown notebook 'fien'; did you mean 'fine'"),
        ("fine/lang", "unknown experiment of profile standard 'fine/lang'; did you mean 'fine/long'"),
        ("fine/_base", "unknown experiment of profile standard 'fine/_base'"),
        ("fine/quiet", "^profile standard has no fine/quiet; these have it: other$"),
        ("raises", "^profile standard has no raises; these have it: quick$"),
        ("fine.none", "unknown experiment of profile standard 'fine/none'"),
        ("fine/../secret", "unknown notebook"),
        ("fine/..", "unknown experiment"),
    ],
)
def test_an_unknown_experiment_is_refused_with_what_there_is(project, name, message):
    params(project, "", name="fine/long")
    params(project, "epochs: 3\n", name="fine/_base")
    params(project, "", name="fine/quiet", profile="other")
    with pytest.raises(InputError, match=message):
        plan(name, "standard")


# --- one file over another -----------------------------------------------------------------------------------------------------


def test_a_file_gives_what_differs_from_the_one_it_extends(project):
    params(project, "epochs: 9\nlr: 0.5\nseed: 4\n", name="_all", profile="other")
    params(project, "extends: other/_all.yaml\nlr: 0.25\n", name="fine/_base")
    params(project, "seed: 7\nextends: standard/fine/_base.yaml\n", name="fine/long")
    assert param_files("fine/long", "standard") == [
        ("other/_all.yaml", {"epochs": 9, "lr": 0.5, "seed": 4}),
        ("standard/fine/_base.yaml", {"lr": 0.25}),
        ("standard/fine/long.yaml", {"seed": 7}),
    ]
    assert read_params("fine/long", "standard") == {"epochs": 9, "lr": 0.25, "seed": 7}


def test_where_a_value_stands_does_not_change_the_run_folder(project):
    params(project, "epochs: 9\nlr: 0.5\n", name="fine/whole")
    params(project, "epochs: 9\n", name="fine/_base")
    params(project, "extends: standard/fine/_base.yaml\nlr: 0.5\n", name="fine/parts")
    assert plan("fine/whole", "standard").folder == plan("fine/parts", "standard").folder


@pytest.mark.parametrize(
    "base, message",
    [
        ("standard/fine.yaml", "standard/fine.yaml extends itself: standard/fine.yaml -> standard/fine.yaml"),
        ("standard/_round.yaml", "itself: standard/fine.yaml -> standard/_round.yaml -> standard/fine.yaml"),
        ("standard/_bass.yaml", "fine.yaml extends: 'standard/_bass.yaml'; did you mean 'standard/_base.yaml'"),
        ("_base.yaml", "did you mean 'standard/_base.yaml'"),
        ("../secret.yaml", "unknown file of params/"),
        ("standard/../../secret.yaml", "unknown file of params/"),
        ("/etc/passwd", "unknown file of params/"),
        ("standard", "unknown file of params/"),
        ("''", "unknown file of params/"),
        ("[standard/_base.yaml]", "must be the path of a file in params/, got a list"),
        ("null", "must be the path of a file in params/, got a NoneType"),
        ("0x" + "f" * 5000, "must be the path of a file in params/, got a int"),
    ],
)
def test_only_a_file_of_the_folder_is_extended_and_none_by_itself(project, base, message):
    (project / "secret.yaml").write_text("epochs: 3\n")
    params(project, "epochs: 3\n", name="_base")
    params(project, "extends: standard/fine.yaml\n", name="_round")
    params(project, f"extends: {base}\n")
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        plan("fine", "standard")
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_named_when_another_extends_it(project):
    params(project, "epochs: [", name="_base")
    params(project, "extends: standard/_base.yaml\n")
    with pytest.raises(InputError, match="params/standard/_base.yaml is no YAML"):
        plan("fine", "standard")


def test_an_unknown_profile_is_refused_with_the_nearest(project):
    with pytest.raises(InputError, match="unknown profile 'standart'; did you mean 'standard'"):
        plan("fine", "standart")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"epoch": 3}, "unknown parameter of fine 'epoch'; did you mean 'epochs'"),
        ({"temperature": 4}, "unknown parameter of fine 'temperature'"),
        ({"epochs": 0}, "epochs must be"),
        ({"solver": "dim"}, "unknown solver 'dim'"),
    ],
)
def test_bad_parameters_are_refused(project, values, message):
    with pytest.raises(InputError, match=message):
        plan("fine", overrides=values)


@pytest.mark.parametrize(
    "text, message",
    [
        ("epochs: [[1]]", "flat list of lines"),
        ("- epochs", "flat list of lines"),
        ("epochs: {a: 1}", "flat list of lines"),
        ("epochs: 1\nepochs: 2", "gives epochs twice"),
        ("epochs: [", "is no YAML"),
        ("epochs: !!python/object:os.system x", "is no YAML"),
        ("a: &a [1]\nb: *a\n? [x]\n: 1", "flat list of lines"),
        ("epochs: 1\n" + "#" * 70_000, "larger than"),
        ("\0", "is no YAML"),
        ("epochs: 2001-99-99", "is no YAML"),
        ("lr: !!float x", "is no YAML"),
        ("epochs: " + "[" * 5000, "is no YAML"),
        ("!!set {}", "flat list of lines"),
        ("? 0x" + "f" * 5000 + "\n: 1", "flat list of lines"),
    ],
)
def test_a_parameter_file_of_another_form_is_refused(project, text, message):
    params(project, text)
    with pytest.raises(InputError, match=message) as caught:
        read_params("fine", "standard")
    assert "\n" not in str(caught.value)


def test_an_empty_parameter_file_gives_the_defaults(project):
    params(project, "# nothing yet\n")
    assert plan("fine", "standard").changed == {}


def test_overrides_of_the_command_line_are_read_like_a_file():
    assert parse_overrides(["epochs=5", "lr=1e-2", "milestones=[1, 2]", "device=cuda:0", "teacher_checkpoint=a=b"]) == {
        "epochs": 5,
        "lr": "1e-2",
        "milestones": [1, 2],
        "device": "cuda:0",
        "teacher_checkpoint": "a=b",
    }
    assert parse_overrides(["solver=no"]) == {"solver": "no"}


@pytest.mark.parametrize(
    "pair", ["epochs", "=5", "milestones=[1", "epochs=2001-99-99", "milestones=[[1]]", "lr=!!float x"]
)
def test_an_override_of_another_form_is_refused(pair):
    with pytest.raises(InputError):
        parse_overrides([pair])


def test_a_limit_is_a_positive_number_of_seconds():
    assert parse_limit(None) is None and parse_limit("2.5") == 2.5
    for text in ("0", "-1", "nan", "inf", "soon"):
        with pytest.raises(InputError, match="limit must be"):
            parse_limit(text)


# --- data ----------------------------------------------------------------------------------------------------------------------


def idx(*sizes, cut=0):
    content = b"\0\0\x08" + bytes([len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)
    count = 1
    for size in sizes:
        count *= size
    return content + bytes(count - cut)


def fashion(project, cut=0):
    folder = project / "data" / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for stem in ("train", "t10k"):
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(idx(3, 28, 28, cut=cut))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx(20))


def test_whole_data_files_are_accepted(project):
    fashion(project)
    assert plan("needs_data", overrides={"dataset": "fashion_mnist"}).parameters.dataset == "fashion_mnist"


def test_truncated_data_files_are_refused(project):
    fashion(project, cut=1)
    with pytest.raises(
        InputError,
        match="train-images-idx3-ubyte is truncated or damaged: its header promises 2368 bytes, it holds 2367",
    ):
        plan("needs_data", overrides={"dataset": "fashion_mnist"})


def test_missing_data_are_refused_with_what_to_do(project):
    with pytest.raises(InputError, match="no complete copy of cifar100 found .* `inv download cifar100`"):
        plan("needs_data", overrides={"dataset": "cifar100"})


# --- the teacher's weights -----------------------------------------------------------------------------------------------------


def checkpoint(project, num_classes):
    path = project / "teacher.safetensors"
    weights = {
        "conv.weight": torch.zeros(4, 1, 3, 3),
        "fc.weight": torch.zeros(num_classes, 4),
        "fc.bias": torch.zeros(num_classes),
    }
    save_state(path, {"model": weights})
    return path


def test_weights_of_the_right_class_count_are_accepted_under_an_absolute_path(project, monkeypatch):
    checkpoint(project, 10)
    monkeypatch.chdir(project)
    found = plan("needs_data", overrides={"teacher_checkpoint": "teacher.safetensors"}).parameters.teacher_checkpoint
    assert Path(found) == (project / "teacher.safetensors").absolute()


def test_weights_of_another_class_count_are_refused_with_both_numbers(project):
    path = checkpoint(project, 100)
    with pytest.raises(InputError, match="teacher.safetensors is of a network for 100 classes, digits has 10"):
        plan("needs_data", overrides={"teacher_checkpoint": str(path)})


def test_missing_and_truncated_weights_are_refused(project):
    with pytest.raises(InputError, match="none.safetensors does not exist"):
        plan("needs_data", overrides={"teacher_checkpoint": str(project / "none.safetensors")})
    path = checkpoint(project, 10)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated or damaged"):
        plan("needs_data", overrides={"teacher_checkpoint": str(path)})


def test_a_notebook_with_an_unknown_parameter_name_is_refused(project, monkeypatch):
    folder = project / "own"
    folder.mkdir()
    shutil.copy(FIXTURES / "fine.ipynb", folder / "own.ipynb")
    text = json.loads((folder / "own.ipynb").read_text())
    text["cells"][1]["source"] = "bogus: int = 1  # no name of the table"
    (folder / "own.ipynb").write_text(json.dumps(text))
    monkeypatch.setenv("KDNB_NOTEBOOKS", str(folder))
    with pytest.raises(InputError, match="unknown parameter 'bogus'"):
        plan("own")


def test_yaml_and_command_line_agree_on_types(project):
    text = "epochs: 5\nlr: 1e-2\nmilestones: [1, 2]\n"
    params(project, text)
    pairs = [f"{name}={value}" for name, value in yaml.safe_load(text).items()]
    assert plan("fine", "standard").parameters == plan("fine", "quick", parse_overrides(pairs)).parameters


# --- files of the notebooks themselves -----------------------------------------------------------------------------------------


def classifier(path, classes):
    from safetensors.torch import save_file

    save_file({"fc.weight": torch.zeros(classes, 4), "fc.bias": torch.zeros(classes)}, path)
    return str(path)


def test_every_file_of_weights_is_looked_at_before_the_run(project, monkeypatch):
    monkeypatch.setenv("KDNB_NOTEBOOKS", str(FIXTURES.parent.parent / "notebooks"))
    good, bad = classifier(project / "good.safetensors", 10), classifier(project / "bad.safetensors", 7)
    made = plan("05_reusable_generator", overrides={"next_teacher_checkpoint": good, "reuse_path": good})
    assert made.parameters.reuse_path == good
    for notebook, values, words in [
        ("05_reusable_generator", {"next_teacher_checkpoint": bad}, "bad.safetensors is of a network for 7 classes"),
        ("06_bfa_attack", {"teacher_checkpoints": [good, bad]}, "bad.safetensors is of a network for 7 classes"),
        ("06_bfa_attack", {"teacher_checkpoints": [good]}, "one file for each of the 2 teachers"),
        ("10_teacher_free", {"teacher_checkpoint": bad}, "digits has 10"),
        ("05_reusable_generator", {"reuse_path": "nothing"}, "reuse_path nothing does not exist"),
        ("12_novel_classes", {"teacher_checkpoint": "nothing"}, "teacher_checkpoint nothing does not exist"),
        ("05_reusable_generator", {"next_dataset": "cifar10"}, "can.t be reused"),
    ]:
        with pytest.raises(InputError, match=words):
            plan(notebook, overrides=values)


def test_paths_in_lists_become_absolute(project, monkeypatch):
    monkeypatch.setenv("KDNB_NOTEBOOKS", str(FIXTURES.parent.parent / "notebooks"))
    monkeypatch.chdir(project)
    paths = [Path(classifier(project / name, 10)).name for name in ("a.safetensors", "b.safetensors")]
    made = plan("06_bfa_attack", overrides={"teacher_checkpoints": paths})
    assert made.parameters.teacher_checkpoints == [str(project / name) for name in paths]


# --- what is allowed and hardly meant ------------------------------------------------------------------------------------------


def test_another_data_set_with_what_was_chosen_for_digits_is_said():
    values = {"dataset": "cifar100", "omitted_class": 3, "epochs": 6, "milestones": [], "lr": 0.1}
    (note,) = notes_on(values, values | {"dataset": "digits"}, {"dataset": "cifar100", "lr": 0.1})
    assert note.startswith("dataset=cifar100 with what was chosen for digits: epochs=6, omitted_class=3;")
    assert notes_on(values, values, {}) == []
    everything = dict.fromkeys(values)
    assert notes_on(values, values | {"dataset": "digits"}, everything) == []


def test_constants_of_cifar_100_on_imagenet_are_said():
    values = {"dataset": "imagenet", "method": "kd", "temperature": 1.0, "others": ["dkd", "rkd", "dkd beta:0.5", "ce"]}
    (note,) = notes_on(values, values, {})
    assert note == "dkd, rkd on imagenet with the constants published for cifar100"
    assert notes_on(values | {"dataset": "cifar100"}, values | {"dataset": "cifar100"}, {}) == []
    assert notes_on(values | {"others": []}, values, {}) == []


def test_a_plan_carries_its_notes():
    notes = plan("04_distillation", "quick", {"dataset": "fashion_mnist"}).notes
    assert len(notes) == 1 and "omitted_class=3" in notes[0]
    assert plan("04_distillation", "quick").notes == ()


def test_a_setting_that_moved_into_a_group_is_refused_with_the_way_to_write_it():
    with pytest.raises(InputError, match='eta is a setting of guidance in 03_fast_ad: write guidance="eta:0.3"'):
        plan("03_fast_ad", "quick", {"eta": 0.3})


@pytest.mark.parametrize("given", ["04_distillation/kd", "04_distillation.kd", "04/kd"])
def test_the_experiment_of_a_single_method_is_answered_with_its_new_call(monkeypatch, given):
    monkeypatch.delenv("KDNB_NOTEBOOKS", raising=False)
    monkeypatch.delenv("KDNB_PARAMS", raising=False)
    with pytest.raises(
        InputError, match="is now 04_distillation with --profile digits -p method=kd; `inv sweep digits_m"
    ):
        plan(given, "digits")
