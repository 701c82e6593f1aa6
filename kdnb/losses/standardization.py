"""Logit standardisation (LSKD): compare the shape of two logit vectors, not their scale."""

from torch import Tensor

from kdnb.losses.checks import check_classes, upcast


def standardize(logits: Tensor, dim: int = -1, eps: float = 1e-7) -> Tensor:
    """Z-score of the logits over the classes.

        Z(z) = (z - mean(z)) / (s(z) + eps),   s = sample standard deviation (divisor K - 1)

    Args:
        logits: (..., K, ...) float, classes along `dim`. The gradient flows through mean and deviation.
        dim: dimension of the classes, the last by default.
        eps: guard of constant rows, added to the deviation: they become zeros, with a gradient as large as 1 / eps.
    Returns:
        Tensor of the same shape, mean 0 and deviation 1 along `dim`, in float32 at least (eps is below float16's range).
    Raises:
        InputError: fewer than 2 classes.

    Source: Sun, Ren, Li, Wang, Cao, Logit Standardization in Knowledge Distillation, CVPR 2024, equations 8-10 and algorithm 1.
    The paper writes the population deviation and a temperature of tau times the deviation; released code, and this function,
    use the divisor K - 1, and the loss is multiplied by the square of the base temperature only.
    """
    check_classes(logits, dim)
    logits = upcast(logits)
    return (logits - logits.mean(dim, keepdim=True)) / (logits.std(dim, keepdim=True) + eps)
