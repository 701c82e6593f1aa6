"""How many flipped bits destroy a network, depending on the images that the attacker has: searches, repeats, the random control.

The trail of every search is a file: a killed study goes on with the next flip, a finished one is only read.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdnb.attacks.bit_flip import NothingToFlip, ProgressiveBitSearch
from kdnb.attacks.flips import Flip, flips_to_chance, random_flips, undo_flips
from kdnb.attacks.quantization import Quantization
from kdnb.data.splits import Split
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError
from kdnb.generators.diffusion import DiffusionPrior
from kdnb.generators.latent import LatentGenerator, draw_latents, refresh_batch_norm
from kdnb.generators.reusable import ReusableGenerator
from kdnb.progress import progress
from kdnb.randomness import generator_for, seed_everything
from kdnb.rehearsal import cut, rehearsing
from kdnb.samplers.cadr import GuidanceConfig
from kdnb.storage.checkpoints import load_state, save_state, state_hash
from kdnb.studies.synthesis import draw
from kdnb.training.evaluation import evaluate

TRAIL = ("teacher", "source", "repeat", *Flip._fields)  # columns of the trails; a teacher at chance leaves none


class Attack(NamedTuple):
    """One bit-flip attack.

    Attributes:
        rows: `flips`, `accuracy`, `loss`, `layer` after every step, from 0 flips on.
        trail: layer, index, bit, before, after of every flip.
        to_chance: flips until accuracy <= 1.1 / K, None if it was not reached.
        exhausted: whether the search found no flip that hurts.
    """

    rows: list[dict]
    trail: list[dict]
    to_chance: int | None
    exhausted: bool


def quantized(model: nn.Module, bits: int = 8) -> Quantization:
    """A copy of the model with integer weights; the model itself stays as it is."""
    return Quantization(deepcopy(model).eval(), bits)


def attack(
    model: nn.Module,
    images: Tensor,
    test: Split,
    num_classes: int,
    *,
    max_flips: int = 30,
    bits: int = 8,
    k_top: int = 10,
    folder: Path | None = None,
    description: str = "bit search",
) -> Attack:
    """Flip the worst bits, as the attacker's images show them, until chance level or `max_flips`.

    Args:
        model: float weights, left as they are. images: (B, C, H, W) of the attacker, in [-1, 1]. They come without labels: the search takes
            what the clean quantised model says of them.
        test: where accuracy is measured, after every step. num_classes: K.
        bits, k_top: of `Quantization` and `ProgressiveBitSearch`.
        folder: `trail.safetensors` is written there after every step, and read first.
    Raises:
        InputError: the folder's trail belongs to another network, or to other images.

    Source: Rakin, He, Fan, ICCV 2019; protocol of AEAHL-RG's study with accuracy after every flip instead of after 20 steps.
    """
    search = ProgressiveBitSearch(quantized(model, bits), images, k_top=k_top)
    identity = state_hash({**model.state_dict(), "attack images": images}) + f"/{bits}/{k_top}"
    path = folder / "trail.safetensors" if folder is not None else None
    rows, exhausted = _resumed(path, identity, search)
    rows = rows or [_row(search, test)]
    for _ in progress(range(search.num_flips, max_flips), description, max_flips, search.num_flips):
        at_chance = rows[-1]["accuracy"] <= 1.1 / num_classes and not rehearsing()  # where no network has learnt
        if exhausted or search.num_flips >= max_flips or at_chance:
            break
        try:
            step = search.step()
            rows.append(_row(search, test, step.loss_after, step.flips[0].layer))
        except NothingToFlip:
            exhausted = True
        if path is not None:
            found = {"identity": identity, "search": search.state_dict(), "rows": rows, "exhausted": exhausted}
            save_state(path, found)
    trail = [flip._asdict() for step in search.trail for flip in step.flips]
    chance = flips_to_chance([row["flips"] for row in rows], [row["accuracy"] for row in rows], num_classes)
    return Attack(rows, trail, chance, exhausted)


def _resumed(path: Path | None, identity: str, search: ProgressiveBitSearch) -> tuple[list[dict], bool]:
    """Rows of an earlier call and whether its search had ended; the search goes on from its flips."""
    if path is None or not path.exists():
        return [], False
    state = load_state(path)
    if not isinstance(state, dict) or state.get("identity") != identity:
        raise InputError(
            f"{path.name} is the trail of another network or of other images; delete it or use another folder"
        )
    search.load_state_dict(state["search"])
    return state["rows"], state["exhausted"]


def _row(search: ProgressiveBitSearch, test: Split, loss: float | None = None, layer: str | None = None) -> dict:
    accuracy = evaluate(search.model, test)["top1"]
    return {"flips": search.num_flips, "accuracy": accuracy, "loss": loss, "layer": layer}


def random_attack(model: nn.Module, test: Split, counts: Sequence[int], *, bits: int = 8, seed: int = 0) -> list[dict]:
    """The control: accuracy after so many random flips, one growing set of bits a seed.

    Args:
        counts: rising numbers of flips at which to evaluate.
    Returns:
        One row a count: `flips`, `accuracy`.
    Raises:
        InputError: the counts do not rise.
    """
    if list(counts) != sorted(set(counts)) or (counts and counts[0] < 0):
        raise InputError(f"counts of random flips must rise from 0 or more, got {list(counts)}")
    quantization = quantized(model, bits)
    rng, rows = generator_for(seed, "random flips"), []
    done: list[Flip] = []
    for count in counts:
        done += random_flips(quantization, count - len(done), rng)
        rows.append({"flips": count, "accuracy": evaluate(quantization.model, test)["top1"]})
    undo_flips(quantization, done)
    return rows


def compare_sources(
    models: Mapping[str, nn.Module],
    sources: Mapping[str, Mapping[str, Sequence[Tensor]]],
    test: Split,
    num_classes: int,
    *,
    max_flips: int = 30,
    bits: int = 8,
    k_top: int = 10,
    folder: Path | None = None,
) -> tuple[list[dict], list[dict], list[dict]]:
    """Attack several networks with several sources of images each, several batches of each source.

    Args:
        models: name -> network. sources: name of the network -> name of the source -> attack batches, one a repeat. Others: as `attack`.
    Returns:
        Rows that begin with `teacher` (name of the network), `source`, `repeat`. curves: one row a step, and `flips`, `accuracy`, `loss`,
        `layer`. trails: one row a flip, and `layer`, `index`, `bit`, `before`, `after`. summary: one row an attack, and `flips`, `reached`
        (chance level), `left` (last accuracy). Where chance was not reached `flips` is what was spent, a lower bound.
    """
    curves, trails, summary = [], [], []
    tasks = [
        (teacher, source, repeat)
        for teacher in models
        for source, batches in sources[teacher].items()
        for repeat in range(len(batches))
    ]
    for teacher, source, repeat in tasks:
        place = folder / f"{teacher}-{source}-{repeat}".replace(" ", "_") if folder is not None else None
        found = attack(
            models[teacher],
            sources[teacher][source][repeat],
            test,
            num_classes,
            max_flips=max_flips,
            bits=bits,
            k_top=k_top,
            folder=place,
            description=f"{teacher}, {source}, repeat {repeat}",
        )
        who = {"teacher": teacher, "source": source, "repeat": repeat}
        curves += [who | row for row in found.rows]
        trails += [who | flip for flip in found.trail]
        last = found.rows[-1]
        summary.append(
            who
            | {
                "flips": found.to_chance or last["flips"],
                "reached": found.to_chance is not None,
                "left": last["accuracy"],
            }
        )
    return curves, trails, summary


def accuracy_at(rows: Sequence[Mapping], flips: int) -> float:
    """Accuracy once `flips` bits are flipped: that of the last row at or below; a destroyed network stays destroyed."""
    return [row["accuracy"] for row in rows if row["flips"] <= flips][-1]


def band(curves: Sequence[Mapping], source: str, max_flips: int) -> list[dict]:
    """Mean, lowest and highest accuracy over teachers and repeats at 0, 1, ..., max_flips flips."""
    attacks: dict[tuple, list[Mapping]] = {}
    for row in curves:
        if row["source"] == source:
            attacks.setdefault((row["teacher"], row["repeat"]), []).append(row)
    table = torch.tensor(
        [[accuracy_at(rows, flips) for flips in range(max_flips + 1)] for rows in attacks.values()], dtype=torch.float64
    )
    lines = zip(table.mean(0).tolist(), table.amin(0).tolist(), table.amax(0).tolist(), strict=True)
    return [{"flips": flips, "mean": mean, "low": low, "high": high} for flips, (mean, low, high) in enumerate(lines)]


def attack_sources(
    data: Dataset,
    teacher: nn.Module,
    prior: DiffusionPrior,
    generator: ReusableGenerator,
    pool: Tensor,
    count: int,
    repeats: int,
    seed: int = 0,
    others: Mapping[str, Split] | None = None,
) -> dict[str, list[Tensor]]:
    """What attackers may hold: `repeats` batches of `count` images from each source, in [-1, 1].

    Args:
        generator: trained with `teacher`. pool: (N, C, H, W), the images it made last.
        others: name -> what a further method made for `teacher`.
    Returns:
        real: private images. CADR: guided samples of the prior. pool: of the pool. reusable, abandoned: the generator with a fresh first
        branch and, as the second, its own g1 or g2 (in the released study, the branch handed on and the one left behind). noise: uniform.
        And those of `others`.
    Raises:
        InputError: images on disk; a method of `others` with fewer images than `count`.
    """
    if not isinstance(data.private, Split):
        raise InputError(f"the attack draws from images in memory; {data.name} stays on disk")
    for name, made in (others or {}).items():
        if len(made) < count:
            raise InputError(f"{name} has left {len(made)} images, and the attacker is to have {count}")
    device = pool.device
    shape = (data.channels, data.image_size, data.image_size)
    found: dict[str, list[Tensor]] = {name: [] for name in ("real", "CADR", "pool", "reusable", "abandoned", "noise")}
    for repeat in cut(range(repeats), "attack images", most=1):
        rng = generator_for(seed, "attack images", repeat, device=device)
        found["real"].append(
            data.private.images[torch.randperm(len(data.private), generator=rng, device=device)[:count]]
        )
        labels = torch.arange(count, device=device) % data.num_classes
        found["CADR"].append(
            draw(
                prior,
                labels,
                shape,
                teacher=teacher,
                guidance=GuidanceConfig(eta=1.0),
                solver="dpmsolver++",
                num_steps=10,
                seed=seed + 1000 * repeat,
            ).images
        )
        found["pool"].append(pool[torch.randperm(len(pool), generator=rng, device=device)[:count]])
        z = draw_latents(count, generator.latent_dim, rng, device)
        for name, branch in (("reusable", generator.gan1), ("abandoned", generator.gan2)):
            found[name].append(_with_fresh_branch(generator, branch, z, seed + 1000 * repeat))
        found["noise"].append(torch.rand(count, *shape, generator=rng, device=device) * 2 - 1)
        for name, made in (others or {}).items():
            rng = generator_for(seed, "attack images", repeat, name, device=device)
            chosen = torch.randperm(len(made), generator=rng, device=device)[:count]
            found.setdefault(name, []).append(made.images[chosen])
    return found


@torch.no_grad()
def _with_fresh_branch(generator: ReusableGenerator, branch: nn.Module, z: Tensor, seed: int) -> Tensor:
    """Images of d((g + branch) / 2) with an untrained g, batch-norm buffers fitted, in evaluation mode."""
    seed_everything(seed)
    mixed = deepcopy(generator)
    mixed.gan2.load_state_dict(branch.state_dict())
    mixed.gan1 = LatentGenerator(
        generator.image_size, generator.channels, generator.latent_dim, generator.gan1.conv_blocks[-2].in_channels
    ).to(z.device)
    refresh_batch_norm(mixed, z)
    return mixed.eval()(z)
