"""Names of networks that are not ours: `timm:NAME`, `torchvision:NAME`, `FILE.py:function`. Checked without loading torch or timm.

After each may stand what overrides the layers that are found automatically, as names of `model.named_modules()`:

    timm:efficientnet_b0 layers:blocks.1,blocks.2,blocks.4 final:bn2
"""

import difflib
import importlib.metadata
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from kdnb import usercode
from kdnb.errors import InputError

LIBRARIES = ("timm", "torchvision")
SETTINGS = ("layers", "final", "pooled", "head")
ARGUMENTS = ("num_classes", "in_channels", "image_size")  # of a user's function; it may take fewer
_ENTRY = re.compile(r"^@register_model\b.*?^def (\w+)\(", re.DOTALL | re.MULTILINE)


class ForeignName(NamedTuple):
    """What a name stands for: a library's entry or a user's function.

    Attributes:
        library: timm or torchvision; None for a function.
        entry: its name there.
        function: of the user; None for a library's entry.
        settings: the layers to look at, where the user names them, as text.
    """

    library: str | None
    entry: str
    function: usercode.UserFunction | None
    settings: dict[str, str]

    @property
    def text(self) -> str:
        """The name in full: with an absolute path, so that it means the same in every folder."""
        base = self.function.text if self.function else f"{self.library}:{self.entry}"
        return " ".join([base, *(f"{key}:{value}" for key, value in self.settings.items())])

    @property
    def title(self) -> str:
        """The name for other people: of a file of code its name alone, without the folders of this machine."""
        base = f"{self.function.path.name}:{self.entry}" if self.function else f"{self.library}:{self.entry}"
        return " ".join([base, *(f"{key}:{value}" for key, value in self.settings.items())])

    @property
    def taps(self) -> dict:
        """The settings as arguments of `kdnb.models.foreign.wrap`."""
        return {key: value.split(",") if key == "layers" else value for key, value in self.settings.items()}


def parse_foreign(name: str) -> ForeignName | None:
    """The parts of a foreign name; None for a name of the zoo, whose spelling is not looked at here."""
    name = str(name)
    library = name.partition(":")[0].strip()
    if library not in LIBRARIES and not re.search(r"\.py:", name):
        return None
    base, settings = usercode.split_settings(name, SETTINGS)
    if library in LIBRARIES:
        return ForeignName(library, base.partition(":")[2].strip(), None, settings)
    function = usercode.parse(base)
    if function is None:
        raise InputError(f"a model of your own is written FILE.py:function, got {name[:80]!r}")
    return ForeignName(None, function.name, function, settings)


def check_foreign(found: ForeignName) -> ForeignName:
    """Refuse what does not exist, before anything is loaded.

    Raises:
        InputError: the library is missing or has no such network (with the nearest name), or as `kdnb.usercode.check`.
    """
    if found.function:
        usercode.check(found.function, ARGUMENTS)
        return found
    assert found.library is not None
    entries = library_entries(found.library)
    if found.entry not in entries:
        near = difflib.get_close_matches(found.entry, entries, n=1, cutoff=0.5)
        hint = f"; did you mean {found.library + ':' + near[0]!r}?" if near else "."
        tags = " without a tag after a dot (weights come from a file of yours)" if "." in found.entry else ""
        raise InputError(
            f"unknown model {found.library + ':' + found.entry!r}{hint} Allowed: the {len(entries)} classifiers that "
            f"{found.library}.{'models.' if found.library == 'torchvision' else ''}list_models() names{tags}"
        )
    return found


def identity(name: str) -> str:
    """What stands for a model in caches and records: a library's version, a file's hash, a name of the zoo as it is.

    >>> identity("resnet8x4")
    'resnet8x4'
    """
    found = parse_foreign(name)
    if found is None:
        return name
    if found.function:
        base = found.function.identity
    else:
        assert found.library is not None
        base = f"{found.library}:{found.entry} {importlib.metadata.version(found.library)}"
    return " ".join([base, *(f"{key}:{value}" for key, value in found.settings.items())])


@cache
def library_entries(library: str) -> frozenset[str]:
    """Names of a library's classifiers, out of its source text: importing timm would take seconds."""
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        extra = "; install the extra: uv sync --extra timm" if library == "timm" else ""
        raise InputError(f"models of {library} need the package {library}, which is not installed{extra}")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    return frozenset(name for path in folder.glob("*.py") for name in _ENTRY.findall(path.read_text("utf-8")))
