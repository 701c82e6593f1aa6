"""kdnb.studies.novel_classes: views and networks keep their layout, targets balance, the assignment is optimal, both stages resume bit for bit."""

import dataclasses
import itertools

import pytest
import torch

from kdnb.data import DATASETS
from kdnb.data.splits import Split
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError
from kdnb.methods import class_relation
from kdnb.methods.class_relation import ClassRelation
from kdnb.models import build
from kdnb.models.base import Features
from kdnb.studies.novel_classes import (
    CosineNet,
    DiscoveryNet,
    ViewSplit,
    assignment,
    discover,
    discovery_accuracy,
    pretrain,
    relation_matrix,
    split_classes,
)
from kdnb.training.recipe import Recipe
from tests.material import Killed

KNOWN, NOVEL = 3, 2
K = KNOWN + NOVEL


def images(count: int, seed: int = 0) -> Split:
    """Five classes of 1x8x8 images, a bright bar in another place each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % K
    pixels = torch.randn(count, 1, 8, 8, generator=generator) * 0.2 - 0.8
    for label in range(K):
        pixels[labels == label, :, label : label + 2] += 1.2
    return Split(pixels.clamp(-1, 1), labels)


def data() -> Dataset:
    spec = dataclasses.replace(DATASETS["digits"], num_classes=K)
    train, test = images(40), images(20, seed=1)
    return Dataset("bars", spec, 8, train, Split(train.images), train, train, test)


TASK = split_classes(data(), KNOWN)


def old_net(seed: int = 0, views: bool = False) -> CosineNet:
    torch.manual_seed(seed)
    return CosineNet(build("resnet8w4", num_classes=K, in_channels=1), KNOWN, 1, views=views)


def test_the_task_hides_the_labels_of_novel_classes_and_of_no_others():
    assert (TASK.known.labels < KNOWN).all() and len(TASK.known) == 24
    assert (TASK.novel.labels == -1).all() and len(TASK.novel) == 16
    assert TASK.test_known.labels.max() == KNOWN - 1 and TASK.num_novel == NOVEL


def test_a_batch_is_half_labelled_half_not_and_repeats_from_its_key():
    views = ViewSplit(TASK.known, TASK.novel, num_small=1)
    batch, labels = list(views.epoch(0, 1, 8, range(2)))[1]
    assert batch.shape == (8, 3, 8, 8) and (labels[:4] >= 0).all() and (labels[4:] == -1).all()
    (again,) = views.epoch(0, 1, 8, range(1, 2))
    assert torch.equal(again[0], batch) and torch.equal(again[1], labels)
    assert sum(len(part) for _, part in views.epoch(0, 0, 8, range(4))) == len(views) == 32


def test_stacked_views_come_out_as_if_each_was_given_alone():
    net, stacked = old_net(views=True).eval(), torch.rand(4, 3, 8, 8)
    alone = torch.stack([net(stacked[:, view : view + 1])[0, 0] for view in range(3)])
    assert torch.allclose(net(stacked)[:, 0], alone, atol=1e-6)
    new = DiscoveryNet(old_net(), NOVEL, num_heads=2, hidden=8, width=4).train()
    for module in new.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.eval()  # the batch's own statistics would join the views
    logits = new(stacked)
    assert logits.shape == (3, 2, 4, K)
    assert torch.allclose(logits[1], new(stacked[:, 1:2])[0], atol=1e-6)
    assert torch.allclose(logits[..., :KNOWN], net(stacked).expand(-1, 2, -1, -1), atol=1e-6), (
        "it starts from the pretrained network"
    )
    assert logits.abs().max() <= 1 + 1e-6


def test_in_eval_mode_the_chosen_head_speaks():
    net, x = DiscoveryNet(old_net(), NOVEL, num_heads=2, hidden=8, width=4).eval(), torch.rand(3, 1, 8, 8)
    first = net(x)
    net.head = 1
    second = net(x)
    assert (
        first.shape == (3, K)
        and torch.equal(first[:, :KNOWN], second[:, :KNOWN])
        and not torch.equal(first[:, KNOWN:], second[:, KNOWN:])
    )


def test_targets_are_labels_for_the_first_half_and_balanced_shares_of_novel_classes_for_the_second():
    logits = torch.randn(3, 2, 8, K, generator=torch.Generator().manual_seed(0)) * 0.1
    labels = torch.tensor([0, 2, 1, 0, -1, -1, -1, -1])
    found = ClassRelation(KNOWN, 2, num_iters=50).targets(logits, labels)
    assert found.shape == (2, 2, 8, K)
    assert torch.equal(found[0, 0, :4].argmax(1), labels[:4]) and torch.all(found[:, :, :4].sum(-1) == 1)
    assert torch.all(found[:, :, 4:, :KNOWN] == 0) and torch.allclose(found[:, :, 4:].sum(-1), torch.ones(2, 2, 4))
    assert torch.allclose(found[:, :, 4:, KNOWN:].sum(2), torch.full((2, 2, NOVEL), 2.0), atol=1e-4)


def test_without_its_weight_the_relation_term_is_absent_and_with_it_zero_gradient_reaches_the_teacher():
    logits = torch.randn(2, 2, 4, K, requires_grad=True)
    old = torch.randn(2, 1, 4, KNOWN, requires_grad=True)
    labels = torch.tensor([0, 1, -1, -1])
    arguments = Features(logits, [], None, None), Features(old, [], None, None), labels, 1
    assert set(ClassRelation(KNOWN, 2, relation_weight=0.0)(*arguments)) == {"swap"}
    terms = ClassRelation(KNOWN, 2)(*arguments)
    sum(terms.values()).backward()
    assert set(terms) == {"swap", "relation"} and old.grad is None and logits.grad.abs().sum() > 0


def test_the_assignment_is_the_best_of_all_permutations():
    generator = torch.Generator().manual_seed(0)
    guesses, labels = torch.randint(7, (200,), generator=generator), torch.randint(7, (200,), generator=generator)
    names = assignment(guesses, labels, 3, 7)
    best = max(
        sum(int(((guesses == 3 + i) & (labels == 3 + j)).sum()) for i, j in enumerate(order))
        for order in itertools.permutations(range(4))
    )
    assert int(((names[guesses] == labels) & (guesses >= 3) & (labels >= 3)).sum()) == best
    assert names[:3].tolist() == [0, 1, 2] and sorted(names.tolist()) == list(range(7))


def test_renamed_novel_outputs_count_as_right_and_known_ones_do_not():
    class Fixed(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(x.flatten().long(), 4).float()

    labels = torch.tensor([0, 1, 2, 2, 3, 3])
    outputs = torch.tensor([0, 0, 3, 3, 2, 2])  # novel 2 and 3 exchanged; the known 1 taken for 0
    found = discovery_accuracy(Fixed(), Split(outputs.view(-1, 1, 1, 1).float(), labels), num_known=2)
    assert found == {"known": 0.5, "novel": 1.0, "all": pytest.approx(5 / 6)}


def test_rows_of_the_relation_matrix_are_distributions():
    found = relation_matrix(old_net().eval(), TASK.test.images, TASK.test.labels, KNOWN)
    assert found.shape == (NOVEL, KNOWN) and torch.allclose(found.sum(1), torch.ones(NOVEL))


@pytest.mark.parametrize("stop", [0, 1, 3, 7])
def test_killed_discovery_resumes_bit_for_bit(stop, tmp_path, monkeypatch):
    recipe = Recipe(epochs=2, batch_size=8, lr=0.05)
    straight, expected = discover(old_net(), TASK, recipe, num_heads=2, seed=3)
    monkeypatch.setattr("kdnb.training.resume.SAVE_EVERY", -1.0)
    calls, inner = 0, class_relation.swapped_prediction

    def dying(*arguments):
        nonlocal calls
        calls += 1
        if calls > stop:
            raise Killed
        return inner(*arguments)

    monkeypatch.setattr("kdnb.methods.class_relation.swapped_prediction", dying)
    with pytest.raises(Killed):
        discover(old_net(), TASK, recipe, num_heads=2, seed=3, folder=tmp_path)
    monkeypatch.undo()
    resumed, found = discover(old_net(), TASK, recipe, num_heads=2, seed=3, folder=tmp_path)
    assert found.history == expected.history and resumed.head == straight.head
    assert all(
        torch.equal(a, b) for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_pretraining_learns_the_known_classes_and_discovery_leaves_the_teacher_alone():
    net, found = pretrain("resnet8w4", data(), TASK, Recipe(epochs=6, batch_size=8, lr=0.1), seed=0)
    assert found.last["top1"] > 0.8
    before = {name: value.clone() for name, value in net.state_dict().items()}
    discover(net, TASK, Recipe(epochs=1, batch_size=8, lr=0.05), num_heads=1)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: split_classes(data(), 1), "at least 2 known"),
        (lambda: split_classes(data(), K - 1), "at least 2 known and 2 novel"),
        (lambda: ViewSplit(TASK.known, TASK.novel, num_large=1), "two views"),
        (lambda: ViewSplit(TASK.known.subset(torch.arange(0)), TASK.novel), "labelled"),
        (lambda: ClassRelation(1, 2), "num_known"),
        (lambda: ClassRelation(3, 2, epsilon=0), "epsilon"),
        (lambda: discover(old_net(), TASK, Recipe(epochs=1, batch_size=8, lr=0.1, flip=True)), "crops already"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_a_pretrained_network_is_read_from_an_earlier_run(tmp_path):
    from types import SimpleNamespace

    from safetensors.torch import save_file

    from kdnb.studies.novel_classes import CosineNet, pretrained
    from kdnb.training.teachers import fresh

    normal = {"in_channels": 1, "num_classes": KNOWN + NOVEL, "mean": (0.5,), "std": (0.5,)}
    data = SimpleNamespace(normalization=normal, channels=1, image_size=8, test=TASK.test)
    made = CosineNet(fresh("resnet8w4", data, 5), KNOWN, 1).eval()
    save_file(made.state_dict(), tmp_path / "known.safetensors")
    net, found = pretrained(str(tmp_path / "known.safetensors"), "resnet8w4", data, TASK)
    assert torch.equal(net(TASK.test.images), made(TASK.test.images)) and 0 <= found.last["top1"] <= 1
    with pytest.raises(InputError, match=f"has {KNOWN} classes, {KNOWN + 1} were asked for"):
        pretrained(str(tmp_path / "known.safetensors"), "resnet8w4", data, TASK._replace(num_known=KNOWN + 1))
