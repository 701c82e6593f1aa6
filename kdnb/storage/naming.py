"""What something was made from, as text and as a hash: it names an artifact and a run folder."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdnb.errors import InputError
from kdnb.storage.paths import outputs_root

BY_HAND = "-by-hand"  # end of a run's name whose cells a person ran


def canonical(value: Any) -> str:
    """JSON with sorted keys and no blanks: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def identity_key(made_from: Mapping) -> str:
    """First 16 hex digits of the sha256 of what something was made from."""
    return hashlib.sha256(canonical(made_from).encode()).hexdigest()[:16]


def run_name(parameters: Mapping) -> str:
    """`seedS-HASH`: the folder name that identical parameters always get."""
    return f"seed{parameters.get('seed', 0)}-{identity_key(dict(parameters))[:10]}"


def run_folder(profile: str, notebook: str, parameters: Mapping, by_hand: bool = False) -> Path:
    """outputs/PROFILE/NOTEBOOK/RUN.

    Args:
        by_hand: the cells run one by one, and nobody knows whether they are those of the notebook: a folder of its own.
    Raises:
        InputError: a part that is no plain name and could lead elsewhere.
    """
    return (
        outputs_root()
        / plain_name("profile", profile)
        / plain_name("notebook", notebook)
        / plain_name("run", run_name(parameters) + (BY_HAND if by_hand else ""))
    )


def plain_name(kind: str, name: str) -> str:
    """`name` if it can only be a folder's own name: letters, digits, `-`, `_` and `.`, no dot first."""
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise InputError(f"the name of a {kind} is made of letters, digits, '-', '_' and '.', got {name!r}")
    return name
