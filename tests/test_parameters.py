import json
import subprocess
import sys

import pytest

from kdnb.errors import InputError
from kdnb.methods import METHODS
from kdnb.parameters import LOOP, ONLINE, PARAMETERS, TRAINING, Parameters, collect, group, resolve
from kdnb.runner.cell import read_cell


def notebook(tmp_path, *sources, tag="parameters"):
    cells = [{"cell_type": "code", "metadata": {"tags": [tag]}, "source": source} for source in sources]
    path = tmp_path / "nb.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    return path


# --- values --------------------------------------------------------------------------------------------------------------------


def test_numbers_written_as_text_become_numbers():
    assert resolve({"weight_decay": "1e-6", "epochs": "20", "buffer_size": "1e3"}) == {
        "weight_decay": 1e-6,
        "epochs": 20,
        "buffer_size": 1000,
    }


def test_a_whole_float_is_a_whole_number_and_an_integer_is_a_real_number():
    found = resolve({"epochs": 3.0, "lr": 1})
    assert type(found["epochs"]) is int and type(found["lr"]) is float


@pytest.mark.parametrize(
    "name, value",
    [
        ("epochs", True),
        ("lr", False),
        ("epochs", 0),
        ("epochs", 2.5),
        ("epochs", None),
        ("epochs", "many"),
        ("epochs", [1]),
        ("lr", 0),
        ("lr", "nan"),
        ("lr", float("inf")),
        ("lr", "1_0.5.2"),
        ("dataset", 3),
        ("device", "gpu"),
        ("device", "cuda:x"),
        ("milestones", 3),
        ("milestones", [5, 5]),
        ("milestones", [5, 3]),
        ("milestones", [True]),
        ("seeds", [1, 1]),
        ("teacher", 8),
        ("teacher_checkpoint", "a\0b"),
        ("seed", 2**32),
        ("seed", -1),
        ("batch_size", 1),
        ("epochs", "9" * 5000),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_what_is_allowed(name, value):
    with pytest.raises(InputError, match=f"^{name} must be .*, got "):
        resolve({name: value})


def test_the_sentence_stays_short_for_a_long_value():
    with pytest.raises(InputError) as caught:
        resolve({"epochs": "x" * 10_000})
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, given, near",
    [
        ("solver", "dim", "ddim"),
        ("dataset", "digit", "digits"),
        ("guidance", "gate:entrophy", "entropy"),
        ("method", "dkd_lsdk", "dkd_lskd"),
        ("teacher", "resnt56", "resnet56"),
    ],
)
def test_an_unknown_choice_is_refused_with_the_nearest(name, given, near):
    with pytest.raises(InputError, match=f"did you mean '{near}'"):
        resolve({name: given})


def test_an_unknown_model_is_refused_under_the_name_of_its_parameter():
    with pytest.raises(InputError, match="^student: unknown model 'resnt8'"):
        resolve({"student": "resnt8"})


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="unknown parameter 'epoch'; did you mean 'epochs'"):
        resolve({"epoch": 3})


def test_aliases_and_free_sizes_of_models_are_known():
    assert resolve({"teacher": "WRN-22-4", "student": "ShuffleV1"}) == {"teacher": "WRN-22-4", "student": "ShuffleV1"}


def test_seeds_keep_their_order_and_milestones_rise():
    assert resolve({"seeds": [3, 1, 2], "milestones": [1, 5]}) == {"seeds": [3, 1, 2], "milestones": [1, 5]}


def test_values_that_exclude_each_other_are_refused():
    with pytest.raises(InputError, match="small_buffer must be below buffer_size, got 64 and 64"):
        resolve({"small_buffer": 64, "buffer_size": 64})
    with pytest.raises(InputError, match="nothing to follow"):
        resolve({"guidance": "ce_weight:0 bn_weight:0"})
    for modes in (["anew"], ["reuse_common", "reuse_fix"]):
        with pytest.raises(InputError, match="modes must hold anew and at least one mode"):
            resolve({"modes": modes})


def test_zero_weights_are_fine_without_guidance():
    assert resolve({"guidance": "ce_weight:0 bn_weight:0 lambda_max:0"})


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"solver": "dpmsolver++"}, "published arithmetic of ddim; it is not defined for dpmsolver"),
        ({"solver": "unipc"}, "not defined for unipc"),
        ({"rule": "separate"}, "published joint rule's arithmetic; with rule separate"),
    ],
)
def test_the_published_arithmetic_goes_with_its_own_rule_and_solver_alone(others, message):
    reference = {"rule": "joint", "solver": "ddim", "guidance": "variant:reference"}
    assert resolve(reference)
    with pytest.raises(InputError, match=message):
        resolve(reference | others)


def test_none_is_a_value_only_where_the_table_says_so():
    assert resolve({"temperature": None, "scales": None, "omitted_class": None}) == {
        "temperature": None,
        "scales": None,
        "omitted_class": None,
    }
    with pytest.raises(InputError, match="epochs must be .*, got None"):
        resolve({"epochs": None})


def test_lists_of_names_are_checked():
    assert resolve({"teachers": ["vgg8q", "resnet8"], "branch_rules": ["gan2", "less_active"]})["teachers"] == [
        "vgg8q",
        "resnet8",
    ]
    with pytest.raises(InputError, match="teachers: unknown model 'resnt8'.*did you mean 'resnet8'"):
        resolve({"teachers": ["vgg8q", "resnt8"]})
    with pytest.raises(InputError, match="branch_rules: .*'gan3'.*did you mean 'gan"):
        resolve({"branch_rules": ["gan3"]})
    for wrong in (
        {"teachers": []},
        {"teachers": ["vgg8q"] * 2},
        {"teachers": "vgg8q"},
        {"branch_rules": []},
        {"branch_rules": ["gan1"] * 2},
    ):
        with pytest.raises(InputError, match="must be a list of different names"):
            resolve(wrong)


def test_lists_of_methods_and_flags_are_checked():
    assert resolve({"others": ["kd", "dkd beta:2"], "ablations": True}) == {
        "others": ["kd", "dkd beta:2"],
        "ablations": True,
    }
    with pytest.raises(InputError, match="others: unknown method 'dkdd'"):
        resolve({"others": ["dkdd beta:2"]})
    with pytest.raises(InputError, match="others: hyper-parameters of dkd are written name:number"):
        resolve({"others": ["dkd beta"]})
    for wrong in ({"others": "kd"}, {"others": [1]}, {"ablations": 1}, {"ablations": "yes"}):
        with pytest.raises(InputError, match="must be"):
            resolve(wrong)


def test_resolving_twice_changes_nothing():
    once = resolve({"lr": "1e-2", "seeds": [1, 2], "device": "cuda:1", "milestones": []})
    assert resolve(once) == once and json.loads(json.dumps(once)) == once


def test_parameters_are_read_as_attributes():
    assert Parameters(epochs=3).epochs == 3
    with pytest.raises(AttributeError, match="no parameter 'epoch' here; there are epochs"):
        Parameters(epochs=3).epoch  # noqa: B018


def test_choices_agree_with_the_code_that_uses_them():
    from kdnb import choices
    from kdnb.generators.diffusion import PRIORS
    from kdnb.generators.reusable import MODES
    from kdnb.training.recipe import DTYPES, MEMORY_FORMATS

    assert choices.PRIORS == tuple(PRIORS) and choices.GENERATOR_MODES == tuple(MODES)
    assert choices.PRECISIONS == tuple(DTYPES) and choices.LAYOUTS == tuple(MEMORY_FORMATS)
    assert set(choices.BASELINES.values()) <= set(METHODS)


def test_every_line_of_the_table_says_what_is_allowed_and_what_for():
    for name, line in PARAMETERS.items():
        assert line.allowed and line.help, name
        assert line.annotation in ("int", "float", "bool", "str", "list[int]", "list[str]"), name


def test_names_are_checked_without_torch():
    code = "import sys, kdnb.runner.plan; sys.exit('torch' in sys.modules or 'papermill' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- from a notebook's globals -------------------------------------------------------------------------------------------------


def test_collect_takes_the_known_names_of_a_namespace():
    assert collect({"epochs": 3, "lr": "1e-1", "path": "x", "In": []}) == {"epochs": 3, "lr": 0.1}


def test_collect_passes_over_what_later_cells_made_under_the_same_name():
    assert collect({"epochs": 3, "teacher": object()}) == {"epochs": 3}


def test_collect_keeps_none_where_it_is_a_value():
    assert collect({"epochs": 3, "lr": None, "clip_norm": None}) == {"epochs": 3, "clip_norm": None}


def test_collect_refuses_a_namespace_without_parameters():
    with pytest.raises(InputError, match="run the parameters cell first"):
        collect({"x": 1})


# --- the parameters cell -------------------------------------------------------------------------------------------------------


def test_read_cell_gives_type_default_and_help(tmp_path):
    path = notebook(
        tmp_path,
        'lr: float = 1e-3  # learning rate\nscales: list[int] = [1, 2]  # regions\nname: str = "a # b"  # text',
    )
    assert read_cell(path) == {
        "lr": ("float", 1e-3, "learning rate"),
        "scales": ("list[int]", [1, 2], "regions"),
        "name": ("str", "a # b", "text"),
    }


@pytest.mark.parametrize(
    "source",
    [
        "lr = 0.1  # no annotation",
        "lr: float = 0.1",
        "lr: float = 1 / 10  # computed",
        "lr: float = open('x')  # a call",
        "scales: list[int] = [1,\n 2]  # two lines",
        "lr: float  # no value",
        "import os",
        "p.lr: float = 1  # attribute",
    ],
)
def test_read_cell_refuses_lines_of_another_form(tmp_path, source):
    with pytest.raises(InputError, match="line 1 of the parameters cell of nb.ipynb must be"):
        read_cell(notebook(tmp_path, source))


def test_read_cell_refuses_no_cell_two_cells_and_no_python(tmp_path):
    line = "lr: float = 1.0  # rate"
    with pytest.raises(InputError, match="it has 0"):
        read_cell(notebook(tmp_path, line, tag="other"))
    with pytest.raises(InputError, match="it has 2"):
        read_cell(notebook(tmp_path, line, line))
    with pytest.raises(InputError, match="no Python"):
        read_cell(notebook(tmp_path, "lr: float = ("))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"cells": 3}',
        b'{"cells": [3]}',
        b"\xff\xfe",
        b'{"cells": [{"metadata": null}]}',
        b"[" * 100_000,
    ],
)
def test_read_cell_refuses_files_that_are_no_notebooks(tmp_path, content):
    path = tmp_path / "nb.ipynb"
    path.write_bytes(content)
    with pytest.raises(InputError, match="nb.ipynb"):
        read_cell(path)


def test_read_cell_refuses_a_file_that_is_far_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("kdnb.runner.cell._MAX_NOTEBOOK", 10)
    with pytest.raises(InputError, match="larger than 10 bytes"):
        read_cell(notebook(tmp_path, "lr: float = 1.0  # rate"))


@pytest.mark.parametrize(
    "values, words",
    [
        ({"confidence_low": 0.5, "confidence_middle": 0.3, "confidence_top": 0.9}, "must rise"),
        ({"confidence_low": 0.3, "confidence_middle": 0.3, "confidence_top": 0.9}, "must rise"),
        ({"num_draw": 5, "num_crops": 4}, "num_draw must be at most num_crops"),
        ({"tournament": 9, "population": 8, "budget": 20}, "must not fall"),
    ],
)
def test_values_of_the_reading_list_that_exclude_each_other_are_refused(values, words):
    with pytest.raises(InputError, match=words):
        resolve(values)


# --- several settings in one text ----------------------------------------------------------------------------------------------


def test_a_group_holds_settings_in_their_own_types():
    values = resolve({"training": "schedule:cosine ema_decay:0.999 compile:true warmup_epochs:5", "loop": ""})
    assert group(values, "training") == {"schedule": "cosine", "ema_decay": 0.999, "compile": True, "warmup_epochs": 5}
    assert group(values, "loop") == {}


@pytest.mark.parametrize(
    "values, words",
    [
        ({"training": "cosine"}, "training: write name:value"),
        ({"training": "ema_decay:0.9 ema_decay:0.99"}, "each name once"),
        ({"training": "sched:cosine"}, "did you mean 'schedule'"),
        ({"training": "schedule:cosin"}, "did you mean 'cosine'"),
        ({"training": "ema_decay:2"}, "ema_decay must be a number above 0 and at most 0.999999, got '2'"),
        ({"training": "compile:yes"}, "compile must be true or false"),
        ({"loop": "latent_dim:1.5"}, "latent_dim must be a whole number"),
        ({"loop": "precision:bf16"}, "unknown setting of loop 'precision'"),
    ],
)
def test_a_group_that_can_not_be_read_is_refused(values, words):
    with pytest.raises(InputError, match=words):
        resolve(values)


def test_settings_of_a_group_are_fields_of_what_they_are_for():
    from kdnb.studies.fast_ad import OnlineConfig
    from kdnb.studies.generator_loop import GeneratorConfig
    from kdnb.studies.reusable_generator import _SPELLINGS
    from kdnb.training.recipe import Recipe

    assert set(TRAINING) <= set(Recipe.__dataclass_fields__)
    assert set(ONLINE) - {"augment"} <= set(OnlineConfig.__dataclass_fields__)
    assert {_SPELLINGS.get(name, name) for name in LOOP} <= set(GeneratorConfig.__dataclass_fields__)


# --- what would fail too late --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, words",
    [
        (
            {"dataset": "cub200", "omitted_class": 200},
            "omitted_class must be one of cub200's classes 0 to 199, got 200",
        ),
        ({"dataset": "digits", "omitted_class": 10}, "classes 0 to 9, got 10"),
        ({"dataset": "digits", "num_known": 9}, "num_known must leave 2 of digits's 10 classes"),
        ({"dataset": "digits", "num_known": 10}, "num_known must leave 2"),
        ({"dataset": "digits", "num_top": 11}, "num_top must be at most the 10 classes of digits, got 11"),
        ({"dataset": "digits", "label_mode": "marginal_smoothing_k11"}, "label_mode can keep at most the 10 classes"),
        ({"label_mode": "marginal"}, "label_mode must be ori, hard, smoothing, marginal_smoothing_kN"),
        ({"label_mode": "marginal_renorm_k0"}, "label_mode must be"),
        ({"image_size": 30, "modes": ["anew", "reuse_fix"]}, "image_size must be a multiple of 4"),
        (
            {"dataset": "imagenet", "vae_epochs": 3},
            "imagenet stays on disk, and this notebook needs all images in memory",
        ),
        ({"dataset": "imagenet", "prior_steps": 3}, "imagenet stays on disk"),
        ({"image_size": 30, "prior_steps": 10}, "image_size must be a multiple of 4"),
        ({"scales": [1, 3]}, "scales must be a rising list of 1, 2 and 4"),
        ({"scales": []}, "scales must be"),
        ({"others": ["kd", "sdd_kd scales:1,3"]}, "others: scales must be a rising list of 1, 2 and 4"),
        ({"depths": [8, 15]}, r"depths must be a rising list of depths 6n \+ 2"),
        ({"search_depths": []}, "search_depths must be"),
        ({"seeds": []}, "seeds must be .* one or more, got"),
        ({"epochs": 100, "milestones": [60, 150]}, r"milestones must not lie beyond epochs = 100, got \[60, 150\]"),
        ({"student_epochs": 8, "epochs": 500, "milestones": [9]}, "beyond student_epochs = 8"),
        ({"milestones": [3], "training": "schedule:cosine"}, "milestones are for the schedule multistep; with cosine"),
        ({"milestones": [], "training": "schedule:multistep"}, "the schedule multistep needs milestones"),
        ({"modes": ["anew", "reuse_fix"], "next_epochs": 2, "warmup": 2}, "next_epochs must be above warmup"),
        ({"modes": ["anew", "reuse_fix"], "epochs": 2, "warmup": 20}, "epochs must be above warmup"),
        ({"student": "resnet8w4", "device": "cpu", "layout": "channels_last"}, "layout must be contiguous.*resnet8w4"),
        ({"model": "resnet8w4", "device": "cpu", "training": "layout:channels_last"}, "layout must be contiguous"),
        (
            {"student": "resnet8w4", "device": "cpu", "layout": "contiguous", "training": "layout:channels_last"},
            "layout must be contiguous",
        ),
        ({"widths_first": [4, 16], "device": "cpu", "training": "layout:channels_last"}, "the search space has stages"),
        (
            {"dataset": "digits", "next_dataset": "cifar10"},
            r"digits images \(1 channels\) can't be reused for cifar10 \(3\)",
        ),
        (
            {"teachers": ["resnet8", "vgg8q"], "teacher_checkpoints": ["a"]},
            "one file for each of the 2 teachers, got 1",
        ),
        ({"prior_steps": 5, "prior_folder": "", "teacher_split": "train"}, "teacher_split must be private"),
        (
            {"prior_steps": 5, "prior_folder": "", "teacher_split": "train", "synthesizers": ["cadr"]},
            "teacher_split must be private",
        ),
        ({"image_size": 30, "synthesizers": ["cmi"]}, "image_size must be a multiple of 4"),
        ({"synthesizers": ["cmi", "dalf"]}, "did you mean 'dafl'"),
        ({"reuse_with": ["nayer"]}, "Allowed: dafl, zskt, dfad, dfq, cmi"),
        ({"crop_low": 0.9, "crop_high": 0.5}, "crop_low must be at most crop_high"),
        ({"student_epochs": 7, "num_draw": 2}, "student_epochs must be a multiple of num_draw"),
        ({"batch_size": 7, "num_draw": 2}, "batch_size must be a multiple of num_draw"),
        ({"num_large": 1, "num_small": 0}, "two views at least"),
    ],
)
def test_what_would_fail_in_the_middle_of_a_run_is_refused_before_it(values, words):
    with pytest.raises(InputError, match=words):
        resolve(values)


@pytest.mark.parametrize(
    "values",
    [
        {
            "dataset": "cifar100",
            "omitted_class": 99,
            "num_known": 50,
            "num_top": 100,
            "label_mode": "marginal_renorm_k10",
        },
        {"dataset": "digits", "omitted_class": None, "num_known": 8},
        {"image_size": 30},
        {"dataset": "imagenet", "modes": ["anew", "reuse_fix"]},
        {"image_size": 28, "modes": ["anew", "reuse_fix"]},
        {"milestones": [150, 180, 210], "epochs": 480},
        {"milestones": [], "training": "schedule:cosine final_lr:0.001", "epochs": 2},
        {"student": "resnet8w4", "device": "cuda", "layout": "channels_last"},
        {"student": "resnet8w8", "device": "cpu", "layout": "channels_last"},
        {"dataset": "cifar10", "next_dataset": "tiny_imagenet"},
        {"dataset": "digits", "next_dataset": ""},
        {"prior_steps": 5, "prior_folder": "prior", "teacher_split": "train"},
        {"prior_steps": 5, "prior_folder": "", "teacher_split": "train", "synthesizers": ["cmi", "noise"]},
        {"synthesizers": [], "other_synthesizers": [], "reuse_with": []},
        {"teachers": ["resnet8", "vgg8q"], "teacher_checkpoints": []},
    ],
)
def test_what_goes_together_is_accepted(values):
    assert resolve(values) == values
