"""Where things lie: outputs, the artifact cache, data sets. Each can be moved by an environment variable."""

import os
from importlib.util import find_spec
from pathlib import Path

from kdnb.errors import InputError

PROJECT = Path(__file__).resolve().parents[2]


def outputs_root() -> Path:
    """`KDNB_OUTPUTS`, else `outputs/` of the checkout, else `outputs/` of the working folder where the package is installed elsewhere."""
    given = os.environ.get("KDNB_OUTPUTS")
    if given:
        return Path(given).absolute()
    base = PROJECT if (PROJECT / "pyproject.toml").is_file() else Path.cwd()
    return base / "outputs"


def cache_root() -> Path:
    """`KDNB_CACHE`, else `cache/` under the outputs: trained teachers, priors and generators, keyed by their recipes."""
    given = os.environ.get("KDNB_CACHE")
    return Path(given).absolute() if given else outputs_root() / "cache"


def data_roots() -> list[Path]:
    """Folders searched for data sets, in order: `KDNB_DATA`, `data/` of the checkout, the folder of Debian's data-set packages; last, in
    a rehearsal, `KDNB_STAND_IN`, where noise stands in for missing files."""
    first, last = (
        [Path(given).absolute()] if (given := os.environ.get(name)) else [] for name in ("KDNB_DATA", "KDNB_STAND_IN")
    )
    return [*first, PROJECT / "data", Path("/usr/share/datasets"), *last]


def inception_weights() -> Path:
    """The file of the Inception network that published FID values use: under a data root, or in torch's own cache.

    Raises:
        InputError: it is not there, or the package that reads it is not installed; nothing is downloaded.
    """
    name = "weights-inception-2015-12-05-6726825d.pth"
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    folders = [*data_roots(), Path(home).expanduser() / "hub" / "checkpoints"]
    if find_spec("torch_fidelity") is None:
        raise InputError("inception_fid needs the extra `fid`: uv sync --extra fid")
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"inception_fid needs torch-fidelity's file {name}, which is not under KDNB_DATA or in torch's cache; it is not downloaded for you"
    )
