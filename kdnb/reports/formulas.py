"""LaTeX formulas as MathML, which a browser shows without scripts and without a network.

What comes out is built anew from a list of known elements and attributes: a formula can name an address or a style, and none gets through.
"""

import html
import re
from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element

_MATHML = "http://www.w3.org/1998/Math/MathML"
_MAX = 5_000  # characters of a formula
_ELEMENTS = set(
    "math mrow mi mn mo mtext mspace msup msub msubsup mfrac msqrt mroot munder mover munderover mtable mtr mtd mstyle "
    "mpadded mphantom".split()
)
_ATTRIBUTES = set(
    "display accent stretchy minsize maxsize mathvariant fence separator form width columnalign linethickness displaystyle "
    "scriptlevel lspace rspace".split()
)


def formula_tokens(latex: str, block: bool) -> Iterator[dict[str, Any]]:
    """html5lib tokens of a formula; of its source in `code`, where it can't be read."""
    latex = latex.strip()
    try:
        from latex2mathml.converter import convert_to_element

        if len(latex) > _MAX:
            raise ValueError(f"{len(latex)} characters")
        plain = re.sub(
            r"(?<!\\)\\\|", "\N{DOUBLE VERTICAL LINE}", latex
        )  # the converter leaves \| as it stands after \big
        plain = re.sub(r"\\arg(?![a-zA-Z])", r"\\mathrm{arg}", plain)  # it knows max and min, not arg
        tree = convert_to_element(plain, display="block" if block else "inline")
        yield from list(_tokens(tree))
    except Exception:  # whatever it stumbles over, the source is there to read
        yield {"type": "StartTag", "name": "code", "namespace": None, "data": {}}
        yield {"type": "Characters", "data": latex}
        yield {"type": "EndTag", "name": "code", "namespace": None}


def _tokens(element: Element) -> Iterator[dict[str, Any]]:
    name = element.tag.rpartition("}")[2]
    known = name in _ELEMENTS
    if known:
        data = {(None, key): value for key, value in element.attrib.items() if key in _ATTRIBUTES}
        yield {"type": "StartTag", "name": name, "namespace": _MATHML, "data": data}
    if element.text:
        yield {"type": "Characters", "data": html.unescape(element.text)}
    for child in element:
        yield from _tokens(child)
    if known:
        yield {"type": "EndTag", "name": name, "namespace": _MATHML}
