"""Randomness that can be stored, put back, or asked for by key."""

import hashlib
import json
import random
from collections.abc import Mapping

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict:
    """The global random state of python, numpy, torch and CUDA as a state that `kdnb.storage.checkpoints` can hold."""
    _, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": {
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": position,
            "has_gauss": has_gauss,
            "cached": cached,
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else [],
    }


def set_random_state(state: Mapping) -> None:
    """Put back what `random_state` returned."""
    random.setstate(state["python"])
    saved = state["numpy"]
    np.random.set_state(
        ("MT19937", saved["keys"].numpy().astype(np.uint32), saved["position"], saved["has_gauss"], saved["cached"])
    )
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def generator_for(*key: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator whose stream depends on the key alone, such as (seed, "augment", step).

    Randomness drawn this way needs no stored state: a resumed loop asks for the same key and gets the same numbers.
    """
    text = json.dumps({"key": [str(part) for part in key]}, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return torch.Generator(device=device).manual_seed(int(digest[:15], 16))
