"""Wide ResNets: the block against its equation, and statistics that move once a step."""

import torch
from torch.nn import functional as F

from kdnb.models import build
from kdnb.models.wrn import PreactivationBlock

torch.set_num_threads(1)


def batch_norm(bn, x):
    """Evaluation mode, written out."""
    shape = (1, -1, 1, 1)
    scale = (bn.weight / (bn.running_var + bn.eps).sqrt()).view(shape)
    return (x - bn.running_mean.view(shape)) * scale + bn.bias.view(shape)


def test_a_widening_block_starts_its_shortcut_after_the_first_activation():
    torch.manual_seed(0)
    block = PreactivationBlock(3, 5, 2, 0.0).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    active = batch_norm(block.bn1, x).relu()
    inner = batch_norm(block.bn2, F.conv2d(active, block.conv1.weight, stride=2, padding=1)).relu()
    expected = F.conv2d(inner, block.conv2.weight, padding=1) + F.conv2d(active, block.convShortcut.weight, stride=2)
    torch.testing.assert_close(block(x), expected)


def test_a_block_of_equal_width_adds_the_raw_input():
    block = PreactivationBlock(4, 4, 1, 0.0).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)


def test_preactivations_are_the_taps_after_the_next_batch_norm():
    model = build("wrn_10_2", 10).double().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    feats, before = model(x, return_features=True).feats, model.preactivations(x)
    following = [model.block2.layer[0].bn1, model.block3.layer[0].bn1, model.bn1]
    torch.testing.assert_close(before[0], feats[0])
    for bn, tap, value in zip(following, feats[1:], before[1:], strict=True):
        torch.testing.assert_close(value, batch_norm(bn, tap))


def test_preactivations_in_training_update_statistics_once_and_use_the_batch():
    torch.manual_seed(0)
    once, asked = build("wrn_10_1", 10), build("wrn_10_1", 10)
    asked.load_state_dict(once.state_dict())
    x = torch.randn(4, 3, 16, 16)
    once(x)
    before = asked.preactivations(x)
    torch.testing.assert_close(asked.block3.layer[0].bn1.running_mean, once.block3.layer[0].bn1.running_mean)
    assert asked.block3.layer[0].bn1.num_batches_tracked == 1
    assert before[2].mean((0, 2, 3)).abs().max() < 1e-5  # standardised by this batch
    assert torch.allclose(before[2].var((0, 2, 3), unbiased=False), torch.ones(32), atol=1e-3)


def test_dropout_acts_in_training_only():
    model = build("wrn_10_1", 10, dropout=0.5)
    x = torch.randn(4, 3, 8, 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
