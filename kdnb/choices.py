"""Names that parameters choose from, in one place that needs no torch: read by the table of parameters and by what they choose.

Methods, models and data sets have tables of their own (`kdnb.methods`, `kdnb.models`, `kdnb.data`).
"""

# training
SCHEDULES = ("one_cycle", "multistep", "cosine", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")
LAYOUTS = ("contiguous", "channels_last")
SPLITS = ("private", "train")  # half of the training images, whose other half is public; or all
BASELINES = {"student alone": "ce", "plain KD": "kd"}  # at their published settings, in every comparison

# diffusion priors and their guidance
PRIORS = ("compact_unet", "unet")
DOMAINS = ("same", "skewed", "mixed", "foreign")  # what a prior has seen, seen from the teacher's data
SOLVERS = ("ddim", "dpmsolver++", "unipc")
RULES = ("joint", "separate")
GATES = ("entropy", "normalized_entropy", "constant", "surprise")
VARIANTS = ("corrected", "reference")
REDUCTIONS = ("sum", "mean")

# generators
GENERATOR_MODES = ("anew", "reuse_common", "reuse_finetune", "reuse_fix")
BRANCH_RULES = ("gan1", "gan2", "less_active", "more_active")
META_UPDATES = ("fomaml", "reptile")
HARD_LOSSES = ("none", "no_aea", "aea")

# data-free distillation
DATAFREE_METHODS = (
    "dafl",
    "zskt",
    "dfad",
    "dfq",
    "deepinversion",
    "adaptive_deepinversion",
    "cmi",
    "fast",
    "nayer",
    "spaceshipnet",
)  # kdnb.samplers.field
REUSABLE_METHODS = ("dafl", "zskt", "dfad", "dfq", "cmi")  # their generator can be one of two branches, as AEAHL-RG's
DIFFUSION_SOURCES = ("unguided", "cadr", "constant", "separate")  # Fast-AD's, by the rule of their guidance
SYNTHESIZERS = (*DATAFREE_METHODS, "aeahl_rg", *DIFFUSION_SOURCES, "noise")
