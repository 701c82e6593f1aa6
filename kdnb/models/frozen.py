"""Hold networks still while something else is trained against them, or have them normalise with the statistics of a batch."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Inside the block the models are in evaluation mode and their parameters ask for no gradient; afterwards all is as it was.

    Gradients still flow *through* them to the input. Without this, every backward pass towards an image would also compute, and
    add up for ever, the gradients of weights that nobody updates.
    """
    modules = [(module, module.training) for model in models for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad) for model in models for parameter in model.parameters()]
    try:
        for model in models:
            model.eval().requires_grad_(False)
        yield
    finally:
        for module, training in modules:
            module.training = training
        for parameter, required in parameters:
            parameter.requires_grad_(required)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Inside the block batch norms standardise by the batch at hand; running statistics, and all other layers, stay as they are."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(norm, norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, training, tracking in before:
            norm.training, norm.track_running_stats = training, tracking
