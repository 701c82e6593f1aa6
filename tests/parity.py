"""Hold kdnb against vectors recorded from the public reference implementations.

    python -m tests.parity DIR...

Reads every `*.safetensors` file below each folder, finds its handler by the metadata's `method` (or, where there is none, by the
file's stem), recomputes everything with kdnb and prints one line a file: name, worst relative error, ok or FAIL. Exits 1 if any
file fails or has no handler.

A handler is a generator over comparisons `(label, ours, reference)`; it takes shapes and hyper-parameters from the file, never from
the set at hand. Handlers live in `tests/parity_handlers/`, one module a family, each with a table `HANDLERS` and, where the default
does not fit, `TOLERANCES` (key -> relative tolerance). Integers and booleans must agree exactly.
"""

import importlib
import json
import pkgutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

import tests.parity_handlers as handlers

FLOAT64_TOLERANCE = 1e-9
FLOAT32_TOLERANCE = 1e-5


@dataclass
class Golden:
    """One recorded file: its stem, its tensors by name and its metadata."""

    name: str
    tensors: dict[str, Tensor]
    meta: dict

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    @property
    def hyper(self) -> dict:
        return self.meta.get("hyper_parameters", {})

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose name starts with `prefix`, without it: a state dict."""
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}


def read(path: Path) -> Golden:
    with safe_open(path, framework="pt") as file:
        meta = json.loads((file.metadata() or {}).get("json", "{}"))
        return Golden(path.stem, {key: file.get_tensor(key) for key in file.keys()}, meta)


def collect() -> tuple[dict, dict]:
    """All handlers and tolerances of the family modules."""
    table, tolerances = {}, {}
    for module in pkgutil.iter_modules(handlers.__path__):
        loaded = importlib.import_module(f"{handlers.__name__}.{module.name}")
        table |= loaded.HANDLERS
        tolerances |= getattr(loaded, "TOLERANCES", {})
    return table, tolerances


def relative_error(ours, reference) -> float:
    """max |ours - reference| / max |reference|; infinite on another shape, on NaN in one only, or where integers differ at all."""
    ours, reference = torch.as_tensor(ours).detach(), torch.as_tensor(reference).detach()
    if ours.shape != reference.shape:
        return float("inf")
    if not reference.is_floating_point():
        return 0.0 if torch.equal(ours.to(reference.dtype), reference) else float("inf")
    if reference.numel() == 0:
        return 0.0
    ours, reference = ours.double(), reference.double()
    if not torch.equal(ours.isfinite(), reference.isfinite()):
        return float("inf")
    difference = (ours - reference).nan_to_num().abs().max().item()
    scale = reference.nan_to_num().abs().max().item()
    return difference / scale if scale > 1e-12 else difference


def check(golden: Golden, handler, tolerance: float | None) -> tuple[float, list[str]]:
    """Worst relative error of a file, and the labels outside their tolerance."""
    worst, failed, seen = 0.0, [], False
    for label, ours, reference in handler(golden):
        seen = True
        error = relative_error(ours, reference)
        double = torch.as_tensor(reference).dtype == torch.float64
        allowed = tolerance or (FLOAT64_TOLERANCE if double else FLOAT32_TOLERANCE)
        worst = max(worst, error)
        if not error <= allowed:
            failed.append(f"{label} ({error:.1e} > {allowed:.0e})")
    return worst, failed if seen else ["the handler compared nothing"]


def find_handler(golden: Golden, table: dict):
    """By the metadata's method, else by the file's stem, else by the longest handler name the stem begins with (`cadr_seed7` -> `cadr`)."""
    prefixes = sorted((key for key in table if golden.name.startswith(key)), key=len, reverse=True)
    for key in (golden.meta.get("method"), golden.name, *prefixes):
        if key in table:
            return key, table[key]
    return None, None


def check_file(path: Path, table: dict, tolerances: dict) -> tuple[bool, str]:
    """Judge one file; any exception is a failure of that file, not of the run."""
    try:
        golden = read(path)
        key, handler = find_handler(golden, table)
        if handler is None:
            return False, f"{path.stem:28s} {'-':>9s} FAIL  no handler for method {golden.meta.get('method')!r}"
        worst, failed = check(golden, handler, tolerances.get(key))
    except Exception as error:  # a broken file or handler must not hide the other files
        return False, f"{path.stem:28s} {'-':>9s} FAIL  {type(error).__name__}: {error}"
    verdict = "ok" if not failed else "FAIL  " + "; ".join(failed[:4])
    return not failed, f"{path.stem:28s} {worst:9.1e} {verdict}"


def main(folders: list[str]) -> int:
    torch.set_num_threads(1)
    table, tolerances = collect()
    paths = sorted(path for folder in folders for path in Path(folder).rglob("*.safetensors"))
    results = []
    for path in paths:
        good, line = check_file(path, table, tolerances)
        print(line, flush=True)
        results.append(good)
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
