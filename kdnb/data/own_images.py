"""Load the user's own data by name: a folder of pictures or a function of the user's, as the same `Dataset` that every set is."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image

from kdnb import usercode
from kdnb.data.folders import FolderSplit, frame, read_picture
from kdnb.data.own import LEAST, Listing, OwnName, check_counts, list_pictures
from kdnb.data.own_arrays import GREY, LARGEST, assemble, from_arrays, read_made
from kdnb.data.splits import Split
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError

IN_MEMORY = 2 * 2**30  # bytes of float tensors; a fixed limit, so that a result does not depend on the machine's memory
_COLOUR = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow's names of 8-bit pictures, beside GREY


def load_own(own: OwnName, image_size: int | None, device: str, split_seed: int) -> Dataset:
    """The data set that a name stands for; size, channels, mean and std are measured and kept in `spec` and among the hashes.

    Raises:
        InputError: what `kdnb.data.own.check_own` refuses; pictures that can't be read (named), grey ones among coloured ones; and
            as `from_arrays`.
    """
    size = image_size or (int(own.settings["size"]) if "size" in own.settings else None)
    if own.function:
        made = usercode.call(own.function)
        train, test, names = read_made(made, own.title)
        flip = own.settings.get("flip") == "yes"
        return from_arrays(own.title, train, test, size, device, split_seed, class_names=names, flip=flip)
    return _load_folder(own, size, device, split_seed)


# --- a folder of pictures ------------------------------------------------------------------------------------------------------


def _load_folder(own: OwnName, size: int | None, device: str, split_seed: int) -> Dataset:
    listings = [listing for listing in list_pictures(own.root) if listing is not None]
    seen = [_look(own, listing) for listing in listings]
    broken = [name for _, bad, _ in seen for name in bad]
    if broken and own.settings.get("skip") != "broken":
        raise InputError(
            f"{len(broken)} picture(s) in {own.root.name} can't be read, {', '.join(broken[:3])} among them; repair or remove them, "
            "or write skip:broken after the folder to leave them out"
        )
    listings = [_without(listing, set(bad)) for listing, (_, bad, _) in zip(listings, seen, strict=True)]
    for listing, least in zip(listings, (LEAST if len(listings) == 2 else LEAST + 1, 1), strict=False):
        counts = np.bincount(listing.labels, minlength=len(listing.classes)).tolist()
        check_counts(counts, listing.classes, own.root.name, least, "too few are left after skipping the others")
    channels = _channels(own, [mode for modes, _, _ in seen for mode in modes.items()])
    natural = _natural_size(sides for _, _, sides in seen)
    size = size or natural
    total = sum(len(listing.names) for listing in listings)
    stream = own.settings.get("stream") == "yes" or total * channels * size * size * 4 > IN_MEMORY
    folders = [
        FolderSplit(
            own.root,
            listing.names,
            torch.tensor(listing.labels),
            size,
            device=torch.device(device),
            channels=channels,
        )
        for listing in listings
    ]
    splits = folders if stream else [_decoded(split) for split in folders]
    notes = {"skipped": f"{len(broken)} pictures: {', '.join(broken[:20])}"} if broken else {}
    return assemble(
        own.title,
        splits[0],
        splits[1] if len(splits) == 2 else None,
        listings[0].classes,
        own.settings.get("flip") == "yes",
        split_seed,
        device,
        notes,
    )


def _look(own: OwnName, listing: Listing) -> tuple[dict[str, str], list[str], list[int]]:
    """Headers of all pictures: for each kind ("grey", "colour") one name, the names of broken ones, shorter sides of the others.

    With skip:broken every picture is decoded, so that one cut short is found now and not in the middle of training.
    """
    kinds: dict[str, str] = {}
    broken: list[str] = []
    sides: list[int] = []
    for name in listing.names:
        try:
            with Image.open(own.root / name) as picture:
                mode, shorter = picture.mode, min(picture.size)
            if mode not in GREY + _COLOUR:
                raise InputError(f"picture {name} has pixels of the kind {mode}; 8 bits a channel are read")
            if own.settings.get("skip") == "broken":
                read_picture(own.root / name)
        except InputError as error:
            if "8 bits" in str(error):
                raise
            broken.append(name)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            broken.append(name)
        else:
            kinds.setdefault("grey" if mode in GREY else "colour", name)
            sides.append(shorter)
    return kinds, broken, sides


def _without(listing: Listing, broken: set[str]) -> Listing:
    kept = [(name, label) for name, label in zip(listing.names, listing.labels, strict=True) if name not in broken]
    return Listing([name for name, _ in kept], [label for _, label in kept], listing.classes)


def _channels(own: OwnName, kinds: Sequence[tuple[str, str]]) -> int:
    if "channels" in own.settings:
        return int(own.settings["channels"])
    found = dict(kinds)
    if len(found) == 2:
        raise InputError(
            f"{own.root.name} mixes grey pictures ({found['grey']}) with coloured ones ({found['colour']}); write channels:3 after the "
            "folder to take all as coloured, or channels:1 to take all as grey"
        )
    return 1 if "grey" in found else 3


def _natural_size(sides: Iterable[list[int]]) -> int:
    """The median of the shorter sides, a multiple of 8 from 8 to 224."""
    values = sorted(side for part in sides for side in part)
    return min(max(8 * round(values[len(values) // 2] / 8), 8), LARGEST)


def _decoded(split: FolderSplit) -> Split:
    """All pictures as tensors on the CPU; one that breaks off is named."""
    parts, problems = [], []
    for name in split.names:
        try:
            picture = read_picture(split.root / name, split.channels)
        except InputError:
            problems.append(name)
            continue
        parts.append(frame(picture, split.evaluation, split.image_size))
    if problems:
        raise InputError(
            f"{len(problems)} picture(s) in {split.root.name} can't be read, {', '.join(problems[:3])} among them; repair or remove "
            "them, or write skip:broken after the folder to leave them out"
        )
    return Split(torch.stack(parts).float() / 127.5 - 1, split.labels)
