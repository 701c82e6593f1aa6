"""Playing back what comes before a layer gives exactly the full pass."""

import pytest
import torch

from kdnb.attacks.prefix_reuse import PrefixReuse, forward_from
from tests.attacks.nets import small_net

LAYERS = ["stem", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "tail", "fc"]


def recorded():
    model, images = small_net()
    reuse = PrefixReuse(model)
    with reuse.recording():
        logits = model(images)
    return model, images, reuse, logits


@pytest.mark.parametrize("name", LAYERS)
def test_a_changed_layer_gives_the_full_pass_bit_for_bit_again_and_again(name):
    model, images, reuse, logits = recorded()
    for scale in (1.5, 2.0, 0.4):
        with torch.no_grad():
            model.get_submodule(name).weight.mul_(scale)
            full = model(images)
        assert torch.equal(forward_from(reuse, name, images), full)
    assert torch.equal(forward_from(reuse, name, images), full) and not torch.equal(full, logits)


def test_nothing_before_the_layer_runs_again():
    model, images, reuse, _ = recorded()
    ran = []
    for name, module in model.named_modules():
        if name in LAYERS:
            original = module._conv_forward if hasattr(module, "_conv_forward") else None
            if original:
                module._conv_forward = lambda *a, name=name, original=original: (ran.append(name), original(*a))[1]
    forward_from(reuse, "block2.conv2", images)
    assert ran == ["block2.conv2", "tail"]


def test_the_model_is_itself_again_afterwards_even_after_an_error():
    model, images, reuse, logits = recorded()
    with pytest.raises(RuntimeError, match="stop"), reuse.from_layer("fc"):
        raise RuntimeError("stop")
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert torch.equal(model(2 * images), small_net()[0](2 * images))


def test_a_wrapped_forward_is_put_back():
    model, images, reuse, logits = recorded()
    own = model.block1.forward
    model.block1.forward = own
    forward_from(reuse, "fc", images)
    assert model.block1.__dict__["forward"] is own


def test_gradients_flow_through_a_recorded_pass():
    model, _, _, logits = recorded()
    logits.sum().backward()
    assert model.stem.weight.grad.abs().sum() > 0
