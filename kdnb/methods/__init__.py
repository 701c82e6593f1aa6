"""Distillation methods by name. One file a method; a new one is such a file and a line in this table."""

import ast
import importlib
import inspect
from typing import NamedTuple

from kdnb.errors import InputError, check_name


class Entry(NamedTuple):
    """Where a method lives and what it is.

    Attributes:
        module, cls: module in `kdnb.methods`, and class in it.
        summary, source: one line, and the publication.
        views: augmented views of each image in a step, 1 or 2.
        needs_teacher: whether a teacher is asked.
    """

    module: str
    cls: str
    summary: str
    source: str
    views: int = 1
    needs_teacher: bool = True


METHODS: dict[str, Entry] = {
    "ce": Entry("ce", "CE", "labels only, the student alone", "", needs_teacher=False),
    "kd": Entry("kd", "KD", "soft targets", "Hinton et al., 2014"),
    "dkd": Entry("dkd", "DKD", "target and non-target classes apart", "Zhao et al., CVPR 2022"),
    "lskd": Entry("lskd", "LSKD", "soft targets of standardised logits", "Sun et al., CVPR 2024"),
    "dkd_lskd": Entry("lskd", "DKDLSKD", "DKD of standardised logits", "Sun et al., CVPR 2024"),
    "sdd_kd": Entry("sdd", "SDDKD", "soft targets in image regions", "Luo and Cheng, CVPR 2024"),
    "sdd_dkd": Entry("sdd", "SDDDKD", "DKD in image regions", "Luo and Cheng, CVPR 2024"),
    "sdd_kd_lskd": Entry(
        "sdd_lskd", "SDDKDLSKD", "standardised soft targets in image regions", "Shardzzi/SDD-LSKD-Fusion"
    ),
    "sdd_dkd_lskd": Entry("sdd_lskd", "SDDDKDLSKD", "standardised DKD in image regions", "Shardzzi/SDD-LSKD-Fusion"),
    "sdd_kd_lskd_released": Entry(
        "sdd_lskd", "SDDKDLSKDReleased", "the same, grouped as in released code", "Shardzzi/SDD-LSKD-Fusion"
    ),
    "sdd_dkd_lskd_released": Entry(
        "sdd_lskd", "SDDDKDLSKDReleased", "the same, summed as in released code", "Shardzzi/SDD-LSKD-Fusion"
    ),
    "sdd_dkd_lskd_dskd_released": Entry(
        "sdd_lskd", "SDDDKDLSKDAveragedReleased", "the same, weights averaged as in released code", "iversonshao/DSKD"
    ),
    "rld": Entry("rld", "RLD", "the teacher's order below the label, and its confidence", "Sun et al., ICCV 2025"),
    "rld_lskd": Entry("rld", "RLDLSKD", "RLD of standardised logits", "Sun et al., ICCV 2025"),
    "sdd_rld": Entry("sdd_rld", "SDDRLD", "RLD in image regions", "iversonshao/DSKD"),
    "sdd_rld_lskd": Entry("sdd_rld", "SDDRLDLSKD", "standardised RLD in image regions", "iversonshao/DSKD"),
    "dist": Entry("dist", "DIST", "correlation over classes and over samples", "Huang et al., NeurIPS 2022"),
    "ttm": Entry("ttm", "TTM", "a temperature for the teacher only", "Zheng and Yang, ICLR 2024"),
    "wttm": Entry("ttm", "WTTM", "TTM weighted by the teacher's doubt", "Zheng and Yang, ICLR 2024"),
    "nkd": Entry("nkd", "NKD", "target and renormalised non-target cross-entropy", "Yang et al., ICCV 2023"),
    "abkd": Entry("abkd", "ABKD", "an alpha-beta divergence in place of the KL", "Wang et al., ICML 2025"),
    "abkd_released": Entry(
        "abkd", "ABKDReleased", "the same with limits scaled as in released code", "Wang et al., ICML 2025"
    ),
    "wkd_l": Entry("wkd_l", "WKDL", "transport of mass between classes seen alike", "Lv et al., NeurIPS 2024"),
    "wkd_l_head": Entry("wkd_l", "WKDLHead", "the same, alike in the teacher's classifier", "Lv et al., NeurIPS 2024"),
    "ctkd": Entry("ctkd", "CTKD", "a learned temperature that works against the student", "Li et al., AAAI 2023"),
    "ctkd_lskd": Entry("ctkd", "CTKDLSKD", "CTKD of standardised logits", "Sun et al., CVPR 2024"),
    "normkd": Entry("normkd", "NormKD", "a temperature for every sample", "Chi et al., 2023"),
    "normkd_dkd": Entry("normkd", "NormKDDKD", "DKD at a temperature for every sample", "Chi et al., 2023"),
    "mlld": Entry("mlld", "MLLD", "samples, classes and batch at five temperatures", "Jin et al., CVPR 2023", views=2),
    "mlld_released": Entry(
        "mlld", "MLLDReleased", "the same in the arithmetic of released code", "Jin et al., CVPR 2023", views=2
    ),
    "mlld_lskd": Entry("mlld", "MLLDLSKD", "MLLD with standardised soft targets", "Sun et al., CVPR 2024", views=2),
    "mlld_lskd_released": Entry(
        "mlld", "MLLDLSKDReleased", "the same in the arithmetic of released code", "Sun et al., CVPR 2024", views=2
    ),
    "fitnet": Entry("fitnet", "FitNet", "one intermediate map, regressed", "Romero et al., ICLR 2015"),
    "vid": Entry("vid", "VID", "mutual information of maps, bounded", "Ahn et al., CVPR 2019"),
    "vid_released": Entry(
        "vid", "VIDReleased", "the same with variances that are never trained", "megvii-research/mdistiller"
    ),
    "semckd": Entry("semckd", "SemCKD", "attention over pairs of layers", "Chen et al., AAAI 2021"),
    "srrl": Entry("srrl", "SRRL", "features that suit the teacher's classifier", "Yang et al., ICLR 2021"),
    "srrl_official": Entry(
        "srrl", "SRRLOfficial", "the same on maps, as the authors released it", "Yang et al., ICLR 2021"
    ),
    "simkd": Entry("simkd", "SimKD", "last map aligned, teacher's classifier reused", "Chen et al., CVPR 2022"),
    "at": Entry("at", "AT", "attention, the strength of maps", "Zagoruyko and Komodakis, ICLR 2017"),
    "rkd": Entry("rkd", "RKD", "distances and angles between images", "Park et al., CVPR 2019"),
    "pkt": Entry("pkt", "PKT", "distributions of similarities", "Passalis and Tefas, ECCV 2018"),
    "sp": Entry("sp", "SP", "similarities of maps in a batch", "Tung and Mori, ICCV 2019"),
    "crd": Entry("crd", "CRD", "each image found among thousands", "Tian et al., ICLR 2020"),
    "crd_relaxed": Entry("crd", "CRDRelaxed", "the same with any image of the class", "Tian et al., ICLR 2020"),
    "reviewkd": Entry("reviewkd", "ReviewKD", "all stages at and after the teacher's", "Chen et al., CVPR 2021"),
    "ofd": Entry("ofd", "OFD", "maps before their ReLU, with margins", "Heo et al., ICCV 2019"),
    "ofd_released": Entry("ofd", "OFDReleased", "the same with a teacher in training mode", "Heo et al., ICCV 2019"),
    "cat_kd": Entry("cat_kd", "CATKD", "class activation maps", "Guo et al., CVPR 2023"),
    "cat_kd_normalized": Entry("cat_kd", "CATKDNormalized", "the same at unit length", "Guo et al., CVPR 2023"),
    "wkd_f": Entry("wkd_f", "WKDF", "Gaussians of the last map, moved", "Lv et al., NeurIPS 2024"),
    "wkd_f_bottleneck": Entry(
        "wkd_f", "WKDFBottleneck", "the same through a larger projector", "Lv et al., NeurIPS 2024"
    ),
    "lsr": Entry("lsr", "LSR", "smoothed labels", "Szegedy et al., CVPR 2016", needs_teacher=False),
    "lsr_released": Entry(
        "lsr",
        "LSRReleased",
        "the same, shared by the other classes only",
        "Yuan et al., CVPR 2020",
        needs_teacher=False,
    ),
    "tfkd_self": Entry("tfkd_self", "TfKDSelf", "soft targets of an earlier self", "Yuan et al., CVPR 2020"),
    "tfkd_self_released": Entry(
        "tfkd_self", "TfKDSelfReleased", "the same in the arithmetic of released code", "Yuan et al., CVPR 2020"
    ),
    "tfkd_reg": Entry(
        "tfkd_reg", "TfKDReg", "a virtual teacher written by hand", "Yuan et al., CVPR 2020", needs_teacher=False
    ),
    "tfkd_reg_released": Entry(
        "tfkd_reg",
        "TfKDRegReleased",
        "the same in the arithmetic of released code",
        "Yuan et al., CVPR 2020",
        needs_teacher=False,
    ),
    "tf_nkd": Entry("nkd", "TfNKD", "NKD's target part of itself", "Yang et al., 2022", needs_teacher=False),
    "uskd": Entry(
        "uskd", "USKD", "a weak head and Zipf's law as teacher", "Yang et al., ICCV 2023", needs_teacher=False
    ),
    "uskd_released": Entry(
        "uskd", "USKDReleased", "the same, ranked as in released code", "Yang et al., ICCV 2023", needs_teacher=False
    ),
    "tolerant_patriarch": Entry(
        "tolerant", "TolerantPatriarch", "a teacher kept from certainty", "Yang et al., AAAI 2019", needs_teacher=False
    ),
    "tolerant": Entry("tolerant", "Tolerant", "generations at temperature 1", "Yang et al., AAAI 2019"),
}


_LISTS = ("scales", "extra_temperatures")  # hyper-parameters that are lists


def parse_method(text: str) -> tuple[str, dict]:
    """A method and its hyper-parameters out of one line, as parameter files write them; names of hyper-parameters are `build`'s matter.

    Raises:
        InputError: unknown method, or something else than `name:number` or `name:number,number,...` after it.

    >>> parse_method("sdd_dkd scales:1,2,4 beta:6")
    ('sdd_dkd', {'scales': [1, 2, 4], 'beta': 6})
    """
    name, *pairs = text.split() or [""]
    check_name("method", name, METHODS)
    hyper = {}
    for pair in pairs:
        key, _, number = pair.partition(":")
        try:
            value = ast.literal_eval(number)
            numbers = value if isinstance(value, tuple) else (value,)
            if (
                key in hyper
                or (len(numbers) != 1 and key not in _LISTS)
                or any(type(one) not in (int, float) for one in numbers)
            ):
                raise ValueError("form")
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise InputError(
                f"hyper-parameters of {name} are written name:number or name:number,number, each once; got {pair[:80]!r}"
            ) from None
        hyper[key] = list(numbers) if key in _LISTS else value
    return name, hyper


def build(name: str, **hyper):
    """A method with the given hyper-parameters, the rest at their published defaults; `bind` it to a pair of networks before use.

    Raises:
        InputError: unknown name or hyper-parameter (with the nearest valid one), or a value out of range.

    >>> build("kd", temperature=2.0).hyper
    {'temperature': 2.0, 'ce_weight': 0.1, 'kd_weight': 0.9}
    """
    entry = METHODS[check_name("method", name, METHODS)]
    cls = getattr(importlib.import_module(f"{__name__}.{entry.module}"), entry.cls)
    for key in hyper:
        check_name(f"hyper-parameter of {name}", key, inspect.signature(cls).parameters)
    return cls(**hyper)
