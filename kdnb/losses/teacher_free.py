"""Teacher-free targets: smoothed labels, the network's own earlier self, and a virtual teacher written by hand.

The released code of Tf-KD averages its KL over batch *and* classes and mends the scale with a multiplier; that arithmetic is kept
under `..._released`. The plain names sum over classes, so that `kd_weight` means the same as everywhere else in this package.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses.checks import check_classes, check_labels, check_temperature, upcast
from kdnb.losses.kd import kd_loss
from kdnb.losses.soft_labels import soft_cross_entropy


def virtual_teacher(
    labels: Tensor, num_classes: int, correct_prob: float = 0.99, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A hand-written teacher: one probability for the label, the rest spread evenly.

        u_k = a  if k = y  else  (1 - a) / (K - 1)

    Args:
        labels: (B,) int64 class ids.
        num_classes: K >= 2.
        correct_prob: a in (0, 1].
        dtype: of the result.
    Returns:
        (B, K) beside the labels, rows sum to 1.
    Raises:
        InputError: K < 2, labels not (B,) int64 or a outside (0, 1].

    Source: Yuan, Tay, Li, Wang, Feng, CVPR 2020 (Tf-KD). Deviation: one scatter; the released code fills rows in a Python loop.
    """
    if num_classes < 2 or not 0 < correct_prob <= 1:
        raise InputError(
            f"a virtual teacher needs K >= 2 and correct_prob in (0, 1], got K = {num_classes}, correct_prob = {correct_prob}"
        )
    check_labels(labels, (labels.numel(),))
    others = torch.full(
        (labels.shape[0], num_classes), (1 - correct_prob) / (num_classes - 1), dtype=dtype, device=labels.device
    )
    return others.scatter(1, labels[:, None], correct_prob)


def lsr(logits_s: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Label smoothing: a uniform share of every label is given to all K classes, the true one included.

        L = - mean_b sum_k q_bk log p_bk,   q_k = (1 - eps) [k = y] + eps / K

    Args:
        logits_s: (B, K) float.
        labels: (B,) int64 class ids.
        smoothing: eps in [0, 1].
    Returns:
        Scalar, nats.
    Raises:
        InputError: eps outside [0, 1].

    Source: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, CVPR 2016, section 7.
    """
    if not 0 <= smoothing <= 1:
        raise InputError(f"smoothing must lie in [0, 1], got {smoothing}")
    check_classes(logits_s)
    check_labels(labels, logits_s.shape[:1])
    return F.cross_entropy(upcast(logits_s), labels, label_smoothing=smoothing)


def lsr_released(logits_s: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Label smoothing as the Tf-KD code computes it: eps is shared by the K - 1 *other* classes only.

        q_y = 1 - eps,   q_k = eps / (K - 1)

    Equals `lsr` with eps K / (K - 1). Arguments, result and errors as `lsr`, but eps in [0, 1).

    Source: released code of Yuan et al., CVPR 2020.
    """
    if not 0 <= smoothing < 1:
        raise InputError(f"smoothing must lie in [0, 1), got {smoothing}")
    logits_s = upcast(logits_s)
    return soft_cross_entropy(logits_s, virtual_teacher(labels, logits_s.shape[-1], 1 - smoothing, logits_s.dtype))


def virtual_teacher_kl(
    logits_s: Tensor, labels: Tensor, temperature: float = 20.0, correct_prob: float = 0.99
) -> Tensor:
    """The KL of Tf-KD by regularisation: the virtual teacher is treated exactly as a real one whose probabilities are u.

        L = KL_tau(log u || z^s) = tau^2 mean_b sum_k q_bk log (q_bk / p_bk),   q = softmax(log u / tau),   p = softmax(z^s / tau)

    Args:
        logits_s: (B, K) float.
        labels: (B,) int64 class ids.
        temperature: tau > 0, of both sides.
        correct_prob: a in (0, 1); u_y = a, u_k = (1 - a) / (K - 1).
    Returns:
        Scalar, nats; zero exactly when the student's probabilities are u.
    Raises:
        InputError: tau <= 0 or a outside (0, 1).

    Source: Yuan et al., CVPR 2020, section 4. The released code computes `virtual_teacher_kl_released`.
    """
    if not 0 < correct_prob < 1:
        raise InputError(f"correct_prob must lie in (0, 1), got {correct_prob}")
    logits_s = upcast(logits_s)
    return kd_loss(
        logits_s, virtual_teacher(labels, logits_s.shape[-1], correct_prob, logits_s.dtype).log(), temperature
    )


def virtual_teacher_kl_released(
    logits_s: Tensor, labels: Tensor, temperature: float = 20.0, correct_prob: float = 0.99
) -> Tensor:
    """The KL of Tf-KD by regularisation, in released arithmetic.

        L = 1/(BK) sum_bk q_bk log (q_bk / softmax(z^s_b)_k),   q = softmax(u / tau)

    The softmax is taken of *probabilities*, so q is nearly uniform (tau 20, K 100: 0.0105 for the label, 0.0100 elsewhere); the
    student is not tempered, there is no tau^2, and the mean is over classes too. Arguments and errors as `virtual_teacher_kl`.

    Source: released code of Yuan et al., CVPR 2020.
    """
    check_temperature(temperature)
    logits_s = upcast(logits_s)
    q = F.softmax(virtual_teacher(labels, logits_s.shape[-1], correct_prob, logits_s.dtype) / temperature, dim=1)
    return F.kl_div(F.log_softmax(logits_s, dim=1), q, reduction="none").mean()
