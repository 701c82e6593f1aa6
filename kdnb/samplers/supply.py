"""Where the student's batches come from: a pool of all that was made, or the synthesiser at the moment of asking.

A supply is a callable `(count, rng) -> images` that is told of every batch made (`take`) and keeps what a resumed run needs.
"""

from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from kdnb.data.augmentation import augment
from kdnb.samplers.replay_buffer import ReplayBuffer
from kdnb.samplers.synthesizer import Synthesis
from kdnb.storage.checkpoints import load_state, save_state


class Supply(Protocol):
    """What a loop asks of a supply."""

    def __call__(self, count: int, rng: torch.Generator) -> Tensor: ...

    def __len__(self) -> int: ...

    def take(self, made: Synthesis) -> None: ...

    def contents(self) -> tuple[Tensor, Tensor]: ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


class PoolSupply:
    """Random images of the newest `capacity` that were made, cropped and mirrored.

    Args:
        capacity, image_shape, device: of the `ReplayBuffer`.
        padding, flip: augmentation, see `augment`.
        folder: one file a batch is kept in `folder`/pool, so that checkpoints stay small; None: a state can't be loaded.
    """

    def __init__(
        self,
        capacity: int,
        image_shape: tuple[int, int, int],
        device: torch.device | str,
        padding: int = 0,
        flip: bool = False,
        folder: Path | None = None,
    ):
        self.pool = ReplayBuffer(capacity, image_shape, device)
        self.padding, self.flip, self.folder = padding, flip, folder
        self.sizes: list[int] = []  # of the batches taken

    def __call__(self, count: int, rng: torch.Generator) -> Tensor:
        """(min(count, stored), C, H, W)."""
        return augment(self.pool.sample(count, rng)[0], self.padding, self.flip, rng)

    def __len__(self) -> int:
        return len(self.pool)

    def take(self, made: Synthesis) -> None:
        self.pool.push(made.images, made.labels)
        if self.folder is not None:
            number = len(self.sizes)
            save_state(self._shard(number), {"images": made.images, "labels": made.labels}, f"pool of round {number}")
        self.sizes.append(len(made.images))

    def contents(self) -> tuple[Tensor, Tensor]:
        """All images and labels, oldest first."""
        return self.pool.contents()

    def state_dict(self) -> dict:
        return {"sizes": list(self.sizes)}

    def load_state_dict(self, state: dict) -> None:
        """Fill the pool from the files, each image in the place that it had, so that draws hit the same images."""
        self.sizes = list(state["sizes"])
        pushed, first = sum(self.sizes), len(self.sizes)
        stored = min(pushed, self.pool.capacity)
        while sum(self.sizes[first:]) < stored:
            first -= 1
        shards = [load_state(self._shard(n), f"pool of round {n}") for n in range(first, len(self.sizes))]
        images, labels = (torch.cat([shard[name] for shard in shards])[-stored:] for name in ("images", "labels"))
        turn = pushed % self.pool.capacity if pushed > self.pool.capacity else 0
        self.pool.load_state_dict({"images": images.roll(turn, 0), "labels": labels.roll(turn, 0), "pushed": pushed})

    def _shard(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / "pool" / f"round-{number:06d}.safetensors"


class FreshSupply:
    """New images at every step, from `synthesizer.sample(count, rng)`.

    Args:
        synthesizer: one with `sample`.
        padding, flip: augmentation; the benchmark's one-step methods have none.
    """

    def __init__(self, synthesizer, padding: int = 0, flip: bool = False):
        self.synthesizer, self.augment = synthesizer, partial(augment, padding=padding, flip=flip)
        self.last: Synthesis | None = None

    def __call__(self, count: int, rng: torch.Generator) -> Tensor:
        return self.augment(self.synthesizer.sample(count, rng), generator=rng)

    def __len__(self) -> int:
        return 0 if self.last is None else len(self.last.images)

    def take(self, made: Synthesis) -> None:
        self.last = made

    def contents(self) -> tuple[Tensor, Tensor]:
        """The batch that the synthesiser made last."""
        assert self.last is not None
        return self.last.images, self.last.labels

    def state_dict(self) -> dict:
        assert self.last is not None
        return {"images": self.last.images, "labels": self.last.labels}

    def load_state_dict(self, state: dict) -> None:
        self.last = Synthesis(state["images"], state["labels"], {})
