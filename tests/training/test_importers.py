import argparse
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kdnb.errors import InputError
from kdnb.models import build
from kdnb.storage.checkpoints import save_state, state_hash
from kdnb.training.importers import import_checkpoint, load_classifier, match_weights, read_weights

NAME = "resnet8w4"


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build(NAME, 10)


def write(path, content, old=False):
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path


def same(found, network):
    expected = network.state_dict()
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


# --- the forms that are read ---------------------------------------------------------------------------------------------------


def wrapped(form, state):
    """Published forms: RepDistiller's and mdistiller's teachers, SDD's, CMI's, torchvision's."""
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.05, "params": [0]}]}
    return {
        "model": {"epoch": 240, "model": state, "accuracy": torch.tensor(72.5), "optimizer": optimizer},
        "best": {"epoch": 199, "model": state, "best_acc": 72.5, "optimizer": optimizer},
        "only": {"model": state},
        "cmi": {
            "epoch": 1,
            "arch": "wrn40_2",
            "state_dict": state,
            "best_acc1": 95.1,
            "optimizer": optimizer,
            "scheduler": {"last_epoch": 3},
        },
        "fast_ad": {"epoch": 200, "model_state_dict": state, "optimizer_state_dict": optimizer},
        "bare": state,
        "parallel": {"model": {f"module.{key}": value for key, value in state.items()}},
        "compiled": {"state_dict": {f"_orig_mod.module.{key}": value for key, value in state.items()}},
    }[form]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("form", ["model", "best", "only", "cmi", "fast_ad", "bare", "parallel", "compiled"])
def test_every_published_form_gives_the_weights_back(tmp_path, network, form, old):
    path = write(tmp_path / "ckpt.pth", wrapped(form, network.state_dict()), old)
    state, digest = import_checkpoint(path, NAME, 10)
    assert same(state, network)
    assert digest == state_hash(network.state_dict())


def test_state_files_and_plain_safetensors_are_read(tmp_path, network):
    save_state(tmp_path / "own.safetensors", {"model": network.state_dict(), "history": [{"top1": 0.5}]})
    save_state(tmp_path / "bare.safetensors", network.state_dict())
    save_file(network.state_dict(), tmp_path / "plain.safetensors")
    for name in ("own", "bare", "plain"):
        assert same(import_checkpoint(tmp_path / f"{name}.safetensors", NAME, 10)[0], network)


def test_a_run_file_gives_its_student_or_its_teacher(tmp_path, network):
    teacher = build("resnet8w8", 10)
    content = {f"module.student.{key}": value for key, value in network.state_dict().items()}
    content |= {f"module.teacher.{key}": value for key, value in teacher.state_dict().items()}
    content |= {"module.regressor.weight": torch.zeros(2, 2)}
    path = write(tmp_path / "student_best", {"epoch": 1, "model": content, "best_acc": torch.tensor(1.0)})
    assert same(import_checkpoint(path, NAME, 10)[0], network)
    assert same(import_checkpoint(path, NAME, 10, part="student")[0], network)
    assert same(import_checkpoint(path, "resnet8w8", 10, part="teacher")[0], teacher)


def test_a_part_that_is_not_there_is_refused(tmp_path, network):
    plain = write(tmp_path / "a.pth", {"model": network.state_dict()})
    with pytest.raises(InputError, match="one network and no teacher"):
        import_checkpoint(plain, NAME, 10, part="teacher")
    student = write(
        tmp_path / "b.pth", {"model": {f"student.{key}": value for key, value in network.state_dict().items()}}
    )
    with pytest.raises(InputError, match="holds no teacher, only a student"):
        import_checkpoint(student, NAME, 10, part="teacher")
    with pytest.raises(InputError, match="part must be one of student, teacher, got 'pupil'"):
        import_checkpoint(student, NAME, 10, part="pupil")


def test_a_loaded_classifier_predicts_what_the_saved_one_did(tmp_path, network):
    path = write(tmp_path / "ckpt.pth", {"model": network.state_dict()})
    images = torch.rand(4, 3, 16, 16)
    found = load_classifier(path, NAME, 10)
    assert not found.model.training
    assert torch.equal(found.model(images), network.eval()(images))
    assert found.hash == state_hash(network.state_dict())


def test_mean_and_std_belong_to_the_network_and_not_to_its_hash(tmp_path, network):
    path = write(tmp_path / "ckpt.pth", network.state_dict())
    plain = load_classifier(path, NAME, 10)
    standardized = load_classifier(path, NAME, 10, mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    mean, std = torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    assert torch.allclose(standardized.model(images), plain.model(((images + 1) / 2 - mean) / std), atol=1e-5)
    assert plain.hash == standardized.hash


def test_half_precision_weights_arrive_in_the_dtype_of_the_network(tmp_path, network):
    half = {name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()}
    state, _ = import_checkpoint(write(tmp_path / "half.pth", half), NAME, 10)
    assert all(state[name].dtype == value.dtype for name, value in network.state_dict().items())
    assert torch.equal(state["conv1.weight"], half["conv1.weight"].float())


def test_missing_batch_norm_counters_start_at_zero(tmp_path, network):
    old = {name: value for name, value in network.state_dict().items() if "num_batches_tracked" not in name}
    state, _ = import_checkpoint(write(tmp_path / "old.pth", old), NAME, 10)
    assert state["bn1.num_batches_tracked"] == 0
    assert list(state) == list(network.state_dict())


@pytest.mark.parametrize(("ours", "theirs"), [("resnet18_imagenet", "resnet18"), ("mobilenetv2_cmi", "mobilenet_v2")])
def test_torchvision_weights_fit_and_give_the_same_logits(tmp_path, ours, theirs):
    import torchvision

    torch.manual_seed(0)
    reference = getattr(torchvision.models, theirs)(num_classes=7).eval()
    found = load_classifier(write(tmp_path / "tv.pth", reference.state_dict()), ours, 7).model
    images = torch.rand(1, 3, 64, 64)
    assert torch.allclose(found(images), reference(images), atol=1e-4, rtol=1e-4)


# --- comparison before use -----------------------------------------------------------------------------------------------------


def test_another_class_count_is_refused_with_both_numbers(tmp_path, network):
    path = write(tmp_path / "cifar10.pth", {"model": network.state_dict()})
    with pytest.raises(InputError, match="cifar10.pth has 10 classes, 100 were asked for"):
        load_classifier(path, NAME, 100)


def test_missing_and_unexpected_names_are_listed_with_the_nearest(tmp_path, network):
    state = network.state_dict()
    state["layer1.0.conv1.weigth"] = state.pop("layer1.0.conv1.weight")
    path = write(tmp_path / "a.pth", state)
    with pytest.raises(
        InputError,
        match=r"lacks layer1\.0\.conv1\.weight, and has in excess layer1\.0\.conv1\.weigth \(layer1.* may be its",
    ):
        load_classifier(path, NAME, 10)


def test_long_lists_of_names_are_cut_short(tmp_path, network):
    path = write(tmp_path / "a.pth", network.state_dict())
    with pytest.raises(InputError, match="lacks (block[^ ]+, ){3}block[^ ]+ and [0-9]+ more"):
        load_classifier(path, "wrn_16_1", 10)


@pytest.mark.parametrize(
    ("asked", "written"),
    [("mobilenetv2", "mobilenetv2_cmi"), ("resnet18", "resnet18_imagenet"), ("resnet14", "resnet8x4")],
)
def test_weights_of_a_network_of_a_similar_name_are_refused_and_named(tmp_path, asked, written):
    path = write(tmp_path / "a.pth", build(written, 10).state_dict())
    with pytest.raises(InputError, match=f"not of {asked}.*" + (f"it fits {written}" if asked != "resnet14" else "")):
        load_classifier(path, asked, 10)


def test_another_shape_is_refused_with_both_shapes(tmp_path, network):
    path = write(tmp_path / "a.pth", network.state_dict())
    with pytest.raises(InputError, match=r"conv1\.weight has shape \(4, 3, 3, 3\), \(4, 1, 3, 3\) is needed"):
        load_classifier(path, NAME, 10, in_channels=1)


@pytest.mark.parametrize(
    "value",
    [
        lambda weight: weight.long(),
        lambda weight: weight.to(torch.complex64),
        lambda weight: weight.to_sparse(),
        lambda weight: weight.to("meta"),
    ],
)
def test_tensors_of_another_kind_are_refused(tmp_path, network, value):
    state = network.state_dict()
    state["fc.bias"] = value(state["fc.bias"])
    with pytest.raises(InputError, match="fc.bias is not a plain tensor of floats|damaged or no torch file"):
        import_checkpoint(write(tmp_path / "a.pth", state), NAME, 10)


def test_values_that_are_not_finite_are_refused(tmp_path, network):
    state = network.state_dict()
    state["fc.bias"][3] = float("nan")
    with pytest.raises(InputError, match="fc.bias holds values that are not finite"):
        import_checkpoint(write(tmp_path / "a.pth", state), NAME, 10)


def test_foreign_networks_can_be_compared_too():
    foreign = torch.nn.Sequential(torch.nn.Linear(3, 2))
    expected = foreign.state_dict()
    assert same(match_weights(expected, expected, "0.weight", "file", "the linear one"), foreign)
    with pytest.raises(InputError, match="the file has 5 classes, 2 were asked for"):
        match_weights({"0.weight": torch.zeros(5, 3)}, expected, "0.weight", "file", "the linear one")


def test_imported_weights_are_copies(network):
    expected = network.state_dict()
    found = match_weights(expected, expected, "fc.weight", "file", NAME)
    found["fc.bias"].add_(1)
    assert not torch.equal(found["fc.bias"], expected["fc.bias"])


# --- hostile and damaged files -------------------------------------------------------------------------------------------------


class Payload:
    """Makes a folder when unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("place", ["optimizer", "model", "weight"])
def test_code_in_a_checkpoint_is_refused_and_never_runs(tmp_path, network, place, old):
    target, state = tmp_path / "ran", network.state_dict()
    content = {"model": state, "optimizer": Payload(target)}
    if place == "model":
        content = {"model": Payload(target)}
    elif place == "weight":
        content = {"model": state | {"fc.bias": Payload(target)}}
    path = write(tmp_path / "evil.pth", content, old)
    with pytest.raises(InputError, match="could run code; it is not loaded"):
        load_classifier(path, NAME, 10)
    assert not target.exists()
    torch.load(path, weights_only=False)  # the payload is a real one
    assert target.exists()


def test_a_plain_pickle_with_code_is_refused_and_never_runs(tmp_path):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"model": Payload(tmp_path / "ran")}))
    with pytest.raises(InputError, match="evil.pth"):
        read_weights(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("extra", "kind"),
    [(argparse.Namespace(lr=0.1), "argparse.Namespace"), (np.float64(0.5), "numpy._core.multiarray.scalar")],
)
def test_pickled_settings_are_refused_by_name(tmp_path, network, extra, kind):
    path = write(tmp_path / "last.pth", {"opt": extra, "model": network.state_dict()})
    with pytest.raises(InputError, match=f"carries a pickled {kind}"):
        load_classifier(path, NAME, 10)


def test_a_pickled_network_is_refused(tmp_path, network):
    with pytest.raises(InputError, match="carries a pickled kdnb.models"):
        load_classifier(write(tmp_path / "a.pth", {"model": network}), NAME, 10)


@pytest.mark.parametrize("form", ["new.pth", "old.pth", "own.safetensors", "plain.safetensors"])
def test_files_cut_short_anywhere_are_refused(tmp_path, network, form):
    path = tmp_path / form
    writers = {
        "new": lambda: write(path, network.state_dict()),
        "old": lambda: write(path, network.state_dict(), old=True),
        "own": lambda: save_state(path, network.state_dict()),
        "plain": lambda: save_file(network.state_dict(), path),
    }
    writers[form.split(".")[0]]()
    whole = path.read_bytes()
    for length in {0, 1, 7, 8, 9, 40, *range(100, len(whole), len(whole) // 23), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=path.name):
            import_checkpoint(path, NAME, 10)


@pytest.mark.parametrize("form", ["new.pth", "own.safetensors"])
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path, network, form):
    """Padding and dates of a zip file may differ; no weight may."""
    path = tmp_path / form
    write(path, network.state_dict()) if form == "new.pth" else save_state(path, network.state_dict())
    whole, refused = path.read_bytes(), 0
    places = torch.randint(0, len(whole), (120,), generator=torch.Generator().manual_seed(0)).tolist()
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        try:
            state, _ = import_checkpoint(path, NAME, 10)
        except InputError:
            refused += 1
        else:
            assert form == "new.pth" and same(state, network)
    assert refused > 60


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html><title>not found</title>",
        b"version https://git-lfs.github.com/spec/v1\n",
        bytes(100),
        b"PK\3\4" + bytes(50),
        b"\x80\x02}q\x00.",
        b"\xff" * 8 + b"{}",
    ],
)
def test_files_of_other_kinds_are_refused(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(InputError, match="checkpoint x.pth"):
        read_weights(tmp_path / "x.pth")


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(InputError, match="bomb.pth is a zip file that torch did not write"):
        read_weights(tmp_path / "bomb.pth")


def test_files_that_are_missing_or_too_large_are_refused(tmp_path, network, monkeypatch):
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(InputError, match="does not exist or is no file"):
            read_weights(path)
    path = write(tmp_path / "a.pth", network.state_dict())
    monkeypatch.setattr("kdnb.training.importers._MAX_FILE", 1000)
    with pytest.raises(InputError, match="at most 1000 are read"):
        read_weights(path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3, "optimizer": {}}, {}, {"model": {"a": 1}}, torch.zeros(3)])
def test_files_without_weights_are_refused(tmp_path, content):
    with pytest.raises(InputError, match="holds"):
        read_weights(write(tmp_path / "a.pth", content))


def test_a_file_that_contains_itself_is_refused(tmp_path):
    content = {}
    content["model"] = content
    with pytest.raises(InputError, match="holds no weights; its entries are model"):
        read_weights(write(tmp_path / "a.pth", content))
