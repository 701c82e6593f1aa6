"""kdnb: a laboratory for knowledge distillation.

Four floors; a module imports only from floors under it (and from siblings below it on its own floor):

    ground      data, models, generators, losses, checkpoints, runs
    methods     methods, samplers, attacks, metrics
    studies     training, datafree, ...
    execution   parameters, execute, report, plots

Importing the package itself loads nothing heavy.
"""

import importlib

__version__ = "0.1.0"

_API = ("compare", "distil", "evaluate", "load", "teacher")


def __getattr__(name: str):
    """`kdnb.distil` and its like are loaded when first asked for."""
    if name in _API:
        return getattr(importlib.import_module("kdnb.api"), name)
    raise AttributeError(f"module 'kdnb' has no attribute {name!r}; it offers {', '.join(_API)} and its submodules")
