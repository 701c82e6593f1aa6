"""kdnb.training.evaluation: counts by hand, the mode of the network is put back."""

import json
import math

import pytest
import torch
from torch import nn

from kdnb.data.splits import Split
from kdnb.models import build
from kdnb.training.evaluation import evaluate, in_batches, predict_logits


def test_evaluation_counts_and_puts_the_mode_back():
    class Fixed(nn.Module):
        def forward(self, x):
            return torch.tensor([[3.0, 2, 1, 0, -1, -2]]).repeat(len(x), 1)

    split = Split(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 4, 5]))
    model = Fixed().train()
    found = evaluate(model, split, batch_size=3)
    assert found["top1"] == 0.25 and found["top5"] == 0.75 and model.training
    log_partition = math.log(sum(math.exp(value) for value in (3, 2, 1, 0, -1, -2)))
    assert found["loss"] == pytest.approx(log_partition - (3 + 2 - 1 - 2) / 4)


def test_predictions_are_those_of_eval_mode():
    student, images = build("resnet8w4", num_classes=3, in_channels=1).train(), torch.randn(44, 1, 8, 8)
    logits = predict_logits(student, images, batch_size=7)
    assert student.training and torch.allclose(logits, student.eval()(images), atol=1e-6)


def test_a_rehearsal_asks_for_one_small_batch_and_has_outputs_for_all(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_REHEARSE", str(tmp_path / "costs.jsonl"))
    sizes = []

    def function(part):
        sizes.append(len(part))
        return part.flatten(1)[:, :2]

    images = torch.arange(120 * 4.0).reshape(120, 1, 2, 2)
    found = in_batches(function, images, 500)
    assert sizes == [50] and found.shape == (120, 2) and torch.equal(found[50:100], found[:50])
    (line,) = map(json.loads, (tmp_path / "costs.jsonl").read_text().splitlines())
    assert line["items"] == 3
