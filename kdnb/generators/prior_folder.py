"""Folders that diffusers wrote, looked at without torch: is there a model in them that can serve as a prior?"""

import json
from pathlib import Path

from kdnb.errors import InputError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def check_prior_folder(folder: Path, channels: int | None = None) -> Path:
    """The folder of the model in a folder of a model or pipeline: its config.json, with safetensors beside it.

    Args:
        channels: of the images it is wanted for; None: any.
    Raises:
        InputError: no such folder or model, weights in pickles only, or images of channels that can't be fitted to those wanted.
    """
    folder = Path(folder)
    parts = [folder, folder / "unet", folder / "transformer"] if (folder / "model_index.json").is_file() else [folder]
    model = next((part for part in parts if (part / "config.json").is_file()), None)
    if model is None:
        raise InputError(
            f"{folder.name} is no folder of a diffusion model: config.json (or model_index.json with unet/config.json) is missing"
        )
    config = read_config(model / "config.json")
    if not list(model.glob("diffusion_pytorch_model*.safetensors")):
        pickles = sorted(path.name for path in model.iterdir() if path.suffix in _PICKLES)
        found = f"; {', '.join(pickles)} can run code when opened and is not read" if pickles else ""
        raise InputError(
            f"{model.name} has no diffusion_pytorch_model.safetensors{found}. Save with safe_serialization=True"
        )
    own = config.get("in_channels")
    if channels is not None and isinstance(own, int) and own != channels and {own, channels} != {1, 3}:
        raise InputError(
            f"the prior in {folder.name} makes images of {own} channels, which can't be fitted to {channels}; only 3 to 1 and 1 to 3 can"
        )
    return model


def read_config(path: Path) -> dict:
    """A JSON object."""
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} can't be read: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path.name} should hold a JSON object, it holds a {type(config).__name__}")
    return config
