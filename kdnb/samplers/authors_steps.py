"""DAFL and ZSKT as their authors' code trains them: generator and student in one object, where the benchmark form has a loop around a
synthesiser. For comparisons with the published tables; `samplers.one_step` is the form used elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdnb.losses.datafree import activation_loss, one_hot_loss
from kdnb.losses.disagreement import attention_loss, class_balance_loss_released, element_mean_kl_released
from kdnb.losses.kd import kd_loss
from kdnb.models.base import Features
from kdnb.models.frozen import frozen


@dataclass(frozen=True)
class DaflConstants:
    """Published values for CIFAR-10; CIFAR-100 has oh 0.5, ie 20, act 0.1, MNIST 1, 5, 0.1.

    Attributes:
        oh_weight, ie_weight (base-10 logarithm), act_weight: of the generator's terms.
        lr_generator: of Adam with default betas. lr_student, momentum, weight_decay: of SGD, x0.1 at 40 % and 80 % of 2000 epochs.
    """

    oh_weight: float = 0.05
    ie_weight: float = 5.0
    act_weight: float = 0.01
    lr_generator: float = 0.02
    lr_student: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4


def dafl_loss_released(
    logits_t: Tensor, features: Tensor, logits_s: Tensor, oh_weight: float, ie_weight: float, act_weight: float
) -> dict[str, Tensor]:
    """The sum that DAFL's code differentiates once for both networks.

        L = w_oh CE(T, argmax T) + w_ie sum_k pbar_k log10 pbar_k - w_a mean|f| + KL(p_T || p_S)

    Args:
        logits_t: (B, K), features: (B, D) pooled, of the teacher. logits_s: (B, K), of the student on *detached* images.
    Returns:
        `oh`, `ie`, `act`, `kd` unweighted, and `total`; scalars. In `kd` the teacher is a constant.

    Source: Chen et al., ICCV 2019, released code.
    """
    losses = {
        "oh": one_hot_loss(logits_t),
        "ie": class_balance_loss_released(logits_t),
        "act": activation_loss(features),
        "kd": kd_loss(logits_s, logits_t, 1.0),
    }
    total = oh_weight * losses["oh"] + ie_weight * losses["ie"] + act_weight * losses["act"] + losses["kd"]
    return losses | {"total": total}


class DaflStepsReleased:
    """DAFL's joint training: the student learns from the very batch of the generator's step.

    Args:
        generator: z -> images, trained. student: trained. teacher: frozen, with `return_features`.
        constants: see `DaflConstants`.
    """

    def __init__(self, generator: nn.Module, teacher: nn.Module, student: nn.Module, constants: DaflConstants):
        self.generator, self.teacher, self.student, self.constants = generator, teacher, student, constants
        self.generator_optimizer = torch.optim.Adam(generator.parameters(), constants.lr_generator)
        self.student_optimizer = torch.optim.SGD(
            student.parameters(), constants.lr_student, constants.momentum, weight_decay=constants.weight_decay
        )

    def step(self, z: Tensor) -> dict[str, Tensor]:
        """One backward pass of the sum, one step of each optimiser; (B, nz) -> losses as in `dafl_loss_released`, detached."""
        self.generator.train()
        self.student.train()
        with frozen(self.teacher):
            images = self.generator(z)
            seen = self.teacher(images, return_features=True)
            weights = self.constants.oh_weight, self.constants.ie_weight, self.constants.act_weight
            losses = dafl_loss_released(seen.logits, seen.pooled, self.student(images.detach()), *weights)
            self.generator_optimizer.zero_grad()
            self.student_optimizer.zero_grad()
            losses["total"].backward()
        self.generator_optimizer.step()
        self.student_optimizer.step()
        return {name: value.detach() for name, value in losses.items()}


def zskt_student_loss_released(
    logits_s: Tensor,
    logits_t: Tensor,
    feats_s: list[Tensor],
    feats_t: list[Tensor],
    attention_weight: float = 250.0,
    temperature: float = 1.0,
) -> Tensor:
    """ZSKT's student: KL averaged over classes too, and attention transfer.

        L = 1/(B K) sum KL(p_T || p_S) + beta sum_i AT(F^s_i, F^t_i)

    Args:
        logits_s, logits_t: (B, K). feats_s, feats_t: lists of (B, C, H, W), pairs of one size. The teacher's are constants.
        attention_weight: beta, 250. temperature: tau, 1; without a factor tau^2.
    Returns:
        Scalar.

    Source: Micaelli and Storkey, NeurIPS 2019, eq. 2, with the reduction of the released code.
    """
    loss = element_mean_kl_released(logits_s, logits_t.detach(), temperature)
    attention = [attention_loss(s, t.detach()) for s, t in zip(feats_s, feats_t, strict=True)]
    return loss + attention_weight * sum(attention)


@dataclass(frozen=True)
class ZsktConstants:
    """Published values: 80 000 pseudo-batches of 128, beta 250 over three WRN stages.

    Attributes:
        num_batches: pseudo-batches, the length of both cosines. generator_steps, student_steps: a batch.
        lr_generator, lr_student: of Adam with default betas. clip_norm: largest gradient norm of both.
        attention_weight, temperature: of `zskt_student_loss_released`.
    """

    num_batches: int = 80_000
    generator_steps: int = 1
    student_steps: int = 10
    lr_generator: float = 1e-3
    lr_student: float = 2e-3
    clip_norm: float = 5.0
    attention_weight: float = 250.0
    temperature: float = 1.0


class ZsktStepsReleased:
    """ZSKT's pseudo-batch: generator steps, then student steps on the *same* z.

    The generator runs in training mode in student steps too, and the student in generator steps, so each moves the other's turn's
    batch-norm statistics, as in the released code.

    Args:
        generator, student: trained. teacher: frozen. constants: see `ZsktConstants`.
        look: (network, images) -> (logits, maps for attention); default: the stages of a classifier of this package.
    """

    def __init__(
        self,
        generator: nn.Module,
        teacher: nn.Module,
        student: nn.Module,
        constants: ZsktConstants,
        look: Callable[[nn.Module, Tensor], tuple[Tensor, list[Tensor]]] | None = None,
    ):
        self.generator, self.teacher, self.student, self.constants = generator, teacher, student, constants
        self.look = look or _stages
        self.optimizers = [
            torch.optim.Adam(generator.parameters(), constants.lr_generator),
            torch.optim.Adam(student.parameters(), constants.lr_student),
        ]
        self.schedules = [
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, constants.num_batches)
            for optimizer in self.optimizers
        ]

    def batch(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """All steps of one pseudo-batch (B, nz); losses and gradient norms before clipping, (generator_steps + student_steps,) each."""
        constants = self.constants
        self.generator.train()
        self.student.train()
        done = []
        with frozen(self.teacher):
            for _ in range(constants.generator_steps):
                images = self.generator(z)
                loss = -element_mean_kl_released(self.student(images), self.teacher(images), constants.temperature)
                done.append(self._update(0, self.generator, loss))
            target = None
            for _ in range(constants.student_steps):
                with torch.no_grad():
                    images = self.generator(z)
                    target = target or self.look(self.teacher, images)
                logits_s, maps_s = self.look(self.student, images)
                loss = zskt_student_loss_released(
                    logits_s, target[0], maps_s, target[1], constants.attention_weight, constants.temperature
                )
                done.append(self._update(1, self.student, loss))
        for schedule in self.schedules:
            schedule.step()
        losses, norms = zip(*done, strict=True)
        return torch.stack(losses), torch.stack(norms)

    def _update(self, index: int, network: nn.Module, loss: Tensor) -> tuple[Tensor, Tensor]:
        self.optimizers[index].zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), self.constants.clip_norm)
        self.optimizers[index].step()
        return loss.detach(), norm


def _stages(network: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    features: Features = network(images, return_features=True)
    return features.logits, features.feats[1:]
