"""Progressive bit search: which few bits of a quantised network's memory destroy it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.attacks.flips import Flip, apply_flips, hamming, undo_flips
from kdnb.attacks.prefix_reuse import PrefixReuse, forward_from
from kdnb.attacks.quantization import Quantization, bit_weights, read_bits
from kdnb.errors import InputError
from kdnb.models.frozen import frozen
from kdnb.rehearsal import cut, rehearsing


class Step(NamedTuple):
    """One committed step of the search.

    Attributes:
        flips: the flipped bits, all in one layer.
        loss_before, loss_after: nats, on the attacker's images.
        layer_losses: loss by layer in the last round of trials.
    """

    flips: tuple[Flip, ...]
    loss_before: float
    loss_after: float
    layer_losses: dict[str, float]


class Candidates(NamedTuple):
    """The bits of one layer that are worth a trial.

    Attributes:
        positions: (k,) of the weights with the largest gradients.
        integers: (k,) the quantised weights there.
        gains: (N, k) first-order gains of flipping each of their N bits, 0 where a flip would lower the loss.
    """

    positions: Tensor
    integers: Tensor
    gains: Tensor


class NothingToFlip(InputError):
    """No flip of the candidate bits raises the loss."""


class ProgressiveBitSearch:
    """The bit-flip attack: in each step the layer is flipped whose best n bits hurt most, with the smallest n that hurts at all.

        gain(w, i) = |g w_i| where flipping raises the loss to first order, else 0,   g = dL/dq,  w_i the bit's value

    Args:
        quantization: the model's weights as integers; changed step by step.
        images: (B, C, H, W), the attack batch, as the model takes them.
        labels: (B,) int64; default the quantised model's own predictions, fixed once, so no true label leaks in.
        k_top: weights considered in each layer, those with the largest |g|; None = all.
        reuse: trial passes recompute from the changed layer on only; exact, about half the work.
    Raises:
        InputError: no images, k_top < 1.

    Attributes:
        trail: list of `Step`, undoable with `undo`, storable with `state_dict`.

    Every step costs one forward and backward pass and, for each n, one trial pass a layer, without gradients. The model is in
    evaluation mode throughout. Source: Rakin, He, Fan, ICCV 2019.
    """

    def __init__(
        self,
        quantization: Quantization,
        images: Tensor,
        labels: Tensor | None = None,
        k_top: int | None = 10,
        reuse: bool = True,
    ):
        if len(images) == 0 or (k_top is not None and k_top < 1):
            raise InputError(f"need at least one image and one candidate weight, got {len(images)} images, {k_top=}")
        self.quantization, self.images, self.k_top = quantization, images, k_top
        self.model = quantization.model
        self.trail: list[Step] = []
        self._reuse = PrefixReuse(self.model) if reuse else None
        if labels is None:
            with frozen(self.model), torch.no_grad():
                labels = self.model(images).argmax(dim=1)
        self.labels = labels

    def step(self) -> Step:
        """Find and commit the next flips.

        Returns:
            The `Step`, also appended to `trail`.
        Raises:
            NothingToFlip: no candidate bit raises the loss to first order, or no number of them does so in fact.
        """
        with frozen(self.model):
            loss_before, gradients = self._gradients()
            candidates = {
                layer.name: self._candidates(layer.integers, gradients[layer.name])
                for layer in self.quantization.layers
            }
            able = torch.stack([found.gains.amax() > 0 for found in candidates.values()]).tolist()
            candidates = {
                name: found for (name, found), flippable in zip(candidates.items(), able, strict=True) if flippable
            }
            if not candidates:
                raise NothingToFlip(
                    "every candidate bit has gain 0: the gradient vanishes or all bits stand where they hurt most; raise k_top"
                )
            for num_bits in range(1, max(found.gains.numel() for found in candidates.values()) + 1):
                losses = self._trials(candidates, num_bits)
                worst = max(losses, key=losses.__getitem__)  # the first layer on a tie
                if not losses[worst] <= loss_before or rehearsing():  # a NaN loss ends the search too
                    break
            else:
                raise NothingToFlip(
                    f"no flip of up to {num_bits} candidate bits in one layer raises the loss above {loss_before:.6g}"
                )
            flips = self._commit(worst, candidates[worst], num_bits)
        if self._reuse:
            self._reuse.clear()
        self.trail.append(Step(flips, loss_before, losses[worst], losses))
        return self.trail[-1]

    def gradients(self) -> dict[str, Tensor]:
        """dL/dq of every quantised layer, in the shape of its weight."""
        with frozen(self.model):
            return self._gradients()[1]

    def _gradients(self) -> tuple[float, dict[str, Tensor]]:
        """Loss and dL/dq = step * dL/dW; the forward pass is recorded for the trials."""
        weights = [layer.module.weight.requires_grad_() for layer in self.quantization.layers]
        if self._reuse:
            with self._reuse.recording():
                loss = F.cross_entropy(self.model(self.images), self.labels)
        else:
            loss = F.cross_entropy(self.model(self.images), self.labels)
        gradients = torch.autograd.grad(loss, weights)
        for weight in weights:
            weight.requires_grad_(False)
        return loss.item(), {
            layer.name: layer.step * gradient
            for layer, gradient in zip(self.quantization.layers, gradients, strict=True)
        }

    def _candidates(self, integers: Tensor, gradient: Tensor) -> Candidates:
        bits = self.quantization.bits
        flat = gradient.reshape(-1)
        positions = flat.abs().topk(min(self.k_top or flat.numel(), flat.numel())).indices
        chosen = integers.view(-1)[positions].long()
        slopes = flat[positions] * bit_weights(bits, flat.device)[:, None].to(flat.dtype)  # (N, k), dL/d(bit)
        raises = (read_bits(chosen, bits) == 1) ^ (
            slopes > 0
        )  # 0 -> 1 where the slope is positive, 1 -> 0 where it is not
        return Candidates(positions, chosen, slopes.abs() * raises)

    def _flipped(self, found: Candidates, num_bits: int) -> tuple[Tensor, Tensor]:
        """Chosen bits (N, k) bool and the integers (k,) after flipping them."""
        best = found.gains.flatten().topk(min(num_bits, found.gains.numel())).indices
        chosen = (
            torch.zeros_like(found.gains, dtype=torch.bool).flatten().index_fill(0, best, True).view_as(found.gains)
        )
        masks = (chosen * bit_weights(len(chosen), chosen.device)[:, None]).sum(
            dim=0
        )  # distinct bits: their sum is their OR
        return chosen, found.integers ^ masks

    def _trials(self, candidates: dict[str, Candidates], num_bits: int) -> dict[str, float]:
        """Loss with the best `num_bits` of each layer flipped, one layer at a time."""
        losses = []
        tried = dict(cut(list(candidates.items()), "layer", most=1))
        for name, found in tried.items():
            self.quantization.write(name, found.positions, self._flipped(found, num_bits)[1])
            losses.append(F.cross_entropy(self._forward(name), self.labels))
            self.quantization.write(name, found.positions, found.integers)
        return dict(zip(tried, torch.stack(losses).tolist(), strict=True))

    def _forward(self, name: str) -> Tensor:
        if self._reuse:
            return forward_from(self._reuse, name, self.images)
        with torch.inference_mode():
            return self.model(self.images)

    def _commit(self, name: str, found: Candidates, num_bits: int) -> tuple[Flip, ...]:
        chosen, after = self._flipped(found, num_bits)
        self.quantization.write(name, found.positions, after)
        flips, values = [], found.integers.tolist()
        positions, weights = found.positions.tolist(), bit_weights(len(chosen)).tolist()
        for bit, place in chosen.nonzero().tolist():
            flips.append(Flip(name, positions[place], bit, values[place], values[place] ^ weights[bit]))
            values[place] = flips[-1].after  # a second bit of the same weight starts from here
        return tuple(flips)

    @property
    def num_flips(self) -> int:
        """Bits flipped so far, each flip counted."""
        return sum(len(step.flips) for step in self.trail)

    @property
    def hamming(self) -> int:
        """Bits that differ from the clean network; smaller than `num_flips` if a bit was flipped back."""
        return hamming(step.flips for step in self.trail)

    def undo(self, steps: int | None = None) -> None:
        """Take back the last `steps` steps (default all)."""
        count = len(self.trail) if steps is None else min(steps, len(self.trail))
        for _ in range(count):
            undo_flips(self.quantization, self.trail.pop().flips)

    def run(self, max_flips: int, evaluate: Callable[[], float] | None = None, stop_at: float = 0.0) -> list[dict]:
        """Step until `max_flips` bits are flipped in all, or the accuracy has fallen to `stop_at`.

        Args:
            max_flips: counted over the whole trail, so a resumed search goes on to the same number.
            evaluate: accuracy of the model as it stands, called after every step; None = never.
            stop_at: accuracy in [0, 1].
        Returns:
            One row a new step: `flips` so far, `layer`, `loss`, `accuracy` (None without `evaluate`).
        Raises:
            NothingToFlip: as in `step`.
        """
        rows: list[dict] = []
        while self.num_flips < max_flips and not (
            rows and rows[-1]["accuracy"] is not None and rows[-1]["accuracy"] <= stop_at
        ):
            step = self.step()
            accuracy = float(evaluate()) if evaluate else None
            rows.append(
                {"flips": self.num_flips, "layer": step.flips[0].layer, "loss": step.loss_after, "accuracy": accuracy}
            )
        return rows

    def state_dict(self) -> dict:
        """Plain values: the trail and the fixed labels."""
        trail = [{**step._asdict(), "flips": [tuple(flip) for flip in step.flips]} for step in self.trail]
        return {"trail": trail, "labels": self.labels.tolist()}

    def load_state_dict(self, state: dict) -> None:
        """Go to the state of another search on the same clean network: undo what was done here, apply the stored trail.

        Raises:
            InputError: an integer isn't what the trail says it was: another network, other bits or another step fit.
        """
        self.undo()
        self.labels = torch.tensor(state["labels"], device=self.labels.device)
        for stored in state["trail"]:
            step = Step(**{**stored, "flips": tuple(Flip(*flip) for flip in stored["flips"])})
            apply_flips(self.quantization, step.flips)
            self.trail.append(step)
