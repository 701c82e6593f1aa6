"""CAT-KD: the student finds each class where the teacher finds it."""

from torch import Tensor

from kdnb.losses import cat_loss, cat_loss_normalized, class_activation_map
from kdnb.methods.base import Method, constant, count, head_of, positive, weight


class CATKD(Method):
    """Class attention transfer beside the labels.

        L = ce_weight CE(mean_xy A^s) + feature_weight mean (pool_r A^s - pool_r A^t)^2  [+ kd_weight KL_tau],   A = W F

    A are activation maps: the head applied at every place, without its bias. So the bias plays no part in either network's logits, here or
    in prediction; the student's is never trained.

    Args:
        feature_weight: 15 (ResNet-32x4 to 8x4; 4.5 VGG-13 to 8, 1.5 and 12 WRN-40-2 to 40-1 and 16-2, 0.7 ResNet-56 to 20, 1.8 ResNet-110
            to 32).
        resolution: r = 2.
        ce_weight, kd_weight, temperature: 1, 0 and 4.

    Source: Guo, Yan, Li, Chen, CVPR 2023; for networks of unlike kind `CATKDNormalized`.
    """

    needs_features = True

    def __init__(
        self,
        feature_weight: float = 15.0,
        resolution: int = 2,
        ce_weight: float = 1.0,
        kd_weight: float = 0.0,
        temperature: float = 4.0,
    ):
        super().__init__()
        self.feature_weight = weight("feature_weight", feature_weight)
        self.resolution = count("resolution", resolution, least=1)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)
        self.temperature = positive("temperature", temperature)

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        # in a tuple: the networks', not ours to train or save
        self._heads = head_of(student, "student"), head_of(teacher, "teacher")

    def compare(self, cam_s: Tensor, cam_t: Tensor) -> Tensor:
        return cat_loss(cam_s, cam_t, self.resolution)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        head_s, head_t = self._heads
        cam_s = class_activation_map(student.final_map, head_s.weight)
        cam_t = class_activation_map(teacher.final_map, constant(head_t)[0])
        student, teacher = (
            features._replace(logits=cam.mean((2, 3))) for features, cam in ((student, cam_s), (teacher, cam_t))
        )
        return self.base_terms(student, teacher, labels) | {"feature": self.feature_weight * self.compare(cam_s, cam_t)}

    def predict(self, features) -> Tensor:
        """Logits without the student's bias, as it was trained."""
        return class_activation_map(features.final_map, self._heads[0].weight).mean((2, 3))


class CATKDNormalized(CATKD):
    """CAT-KD between activation maps at unit length, for networks of unlike kind.

    Args:
        feature_weight: 600 (ResNet-32x4 to ShuffleNets; 80 WRN-40-2 to ShuffleNetV1 with r = 4, 15 and 40 VGG-13 and ResNet-50 to
            MobileNetV2 with r = 2).
        resolution: r = 4.
        ce_weight, kd_weight, temperature: as `CATKD`.
    """

    def __init__(
        self,
        feature_weight: float = 600.0,
        resolution: int = 4,
        ce_weight: float = 1.0,
        kd_weight: float = 0.0,
        temperature: float = 4.0,
    ):
        super().__init__(feature_weight, resolution, ce_weight, kd_weight, temperature)

    def compare(self, cam_s: Tensor, cam_t: Tensor) -> Tensor:
        return cat_loss_normalized(cam_s, cam_t, self.resolution)
