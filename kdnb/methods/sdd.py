"""Scale-decoupled distillation (SDD), with soft targets or DKD in every region."""

from collections.abc import Sequence

from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses import check_scales, region_logits, sdd_dkd_loss, sdd_kd_loss
from kdnb.methods.base import Method, constant, count, head_of_map, positive, warm_up, weight


class SDD(Method):
    """Base of the methods that compare logits of image regions; it has no trained parameters.

    Both classifiers are applied to their network's map before global pooling (`kdnb.losses.region_logits`); the student's own head thus
    learns from every region. With scales [1] the ordinary logits are used, so that the loss is plain KD or DKD.
    """

    needs_features = True

    def __init__(self, scales: Sequence[int]):
        super().__init__()
        self.scales = list(check_scales(scales))
        if self.scales[0] != 1:
            raise InputError(
                f"scales must begin with 1, the whole image that regions are compared with, got {self.scales}"
            )
        self.needs_features = len(self.scales) > 1

    @property
    def needs_labels(self) -> bool:
        return True

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        if self.scales == [1]:  # whole images need no map
            return
        # a tuple hides the heads from nn.Module: the networks own them, the optimiser and the state dict must not meet them twice
        self._heads = (head_of_map(student, "student", shapes_s), head_of_map(teacher, "teacher", shapes_t))

    def regions(self, student, teacher) -> tuple[Tensor, Tensor]:
        """(B, K, M) region logits of student and teacher."""
        if self.scales == [1]:
            return student.logits.unsqueeze(2), teacher.logits.unsqueeze(2)
        head_s, head_t = self._heads
        logits_s = region_logits(student.final_map, head_s.weight, head_s.bias, self.scales)
        return logits_s, region_logits(teacher.final_map.detach(), *constant(head_t), self.scales)


class SDDKD(SDD):
    """Soft targets in every region (`kdnb.losses.sdd_kd_loss`).

        L = ce_weight CE + min(epoch / warmup, 1) kd_weight SDD_KD

    Args:
        scales: ascending, of 1, 2, 4, with 1 first; the paper uses [1, 2] for alike networks and [1, 2, 4] for unlike ones.
        temperature, ce_weight, kd_weight, complementary_weight: 4, 0.1, 0.9 and 2.
        warmup: epochs; 0 as in released code, 30 in the paper.

    Source: Luo, Cheng, CVPR 2024. Released code also clips gradients at norm 40, which is the training loop's matter here.
    """

    standardize_logits = False

    def __init__(
        self,
        scales: Sequence[int] = (1, 2),
        temperature: float = 4.0,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
        complementary_weight: float = 2.0,
        warmup: int = 0,
    ):
        super().__init__(scales)
        self.temperature = positive("temperature", temperature)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)
        self.complementary_weight = weight("complementary_weight", complementary_weight)
        self.warmup = count("warmup", warmup)

    def loss(self, logits_s: Tensor, logits_t: Tensor, labels: Tensor) -> Tensor:
        return sdd_kd_loss(
            logits_s, logits_t, labels, self.temperature, self.complementary_weight, self.standardize_logits
        )

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        loss = self.loss(*self.regions(student, teacher), labels)
        return self.ce_term(student, labels) | {"sdd": warm_up(epoch, self.warmup) * self.kd_weight * loss}


class SDDDKD(SDD):
    """DKD in every region (`kdnb.losses.sdd_dkd_loss`).

        L = ce_weight CE + min(epoch / warmup, 1) SDD_DKD

    Args:
        scales, complementary_weight: as `SDDKD`.
        alpha, beta, temperature, ce_weight, warmup: as `kdnb.methods.dkd.DKD`.

    Source: Luo, Cheng, CVPR 2024.
    """

    standardize_logits = False

    def __init__(
        self,
        scales: Sequence[int] = (1, 2),
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        complementary_weight: float = 2.0,
        warmup: int = 20,
    ):
        super().__init__(scales)
        self.alpha = weight("alpha", alpha)
        self.beta = weight("beta", beta)
        self.temperature = positive("temperature", temperature)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.complementary_weight = weight("complementary_weight", complementary_weight)
        self.warmup = count("warmup", warmup)

    def loss(self, logits_s: Tensor, logits_t: Tensor, labels: Tensor) -> Tensor:
        weights = (self.alpha, self.beta, self.temperature, self.complementary_weight)
        return sdd_dkd_loss(logits_s, logits_t, labels, *weights, self.standardize_logits)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        loss = self.loss(*self.regions(student, teacher), labels)
        return self.ce_term(student, labels) | {"sdd": warm_up(epoch, self.warmup) * loss}
