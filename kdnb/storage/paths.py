"""Where things lie: outputs, the artifact cache, data sets. Each can be moved by an environment variable."""

import os
from pathlib import Path

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
