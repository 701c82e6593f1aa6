"""kdnb: a laboratory for knowledge distillation.

Rooms, from the ground up; a module imports from its own room or from rooms below:

    storage, losses, models, generators    whole files; pure functions on tensors; networks
    methods, attacks, data, reports        one method or attack a file; data sets; what runs left behind
    samplers, training                     what makes images; the one training loop
    studies, runner                        what the notebooks ask; notebooks run headless

Beside them lies what every room or every notebook uses: `parameters`, `runs`, `checks`, `plots`, `metrics`, ...
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
