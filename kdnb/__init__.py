"""kdnb: a laboratory for knowledge distillation.

Four floors; a module imports only from floors under it (and from siblings below it on its own floor):

    ground      data, models, generators, losses, checkpoints, runs
    methods     methods, samplers, attacks, metrics
    studies     training, datafree, ...
    execution   parameters, execute, report, plots

Importing the package itself loads nothing heavy.
"""

__version__ = "0.1.0"
