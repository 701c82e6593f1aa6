"""An executed notebook as one safe page: headings, tables, lists, images, code and formulas; no scripts, nothing loaded from anywhere.

A notebook is material from outside: its Markdown may hold HTML, its outputs may hold anything. All of it goes through one list of
elements and attributes; addresses are those of the page itself and images inside it.
"""

import base64
import re
import secrets
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from kdnb.reports.formulas import formula_tokens

_TAGS = set(
    "a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr i img kbd li ol "
    "p pre s small span strong sub summary sup table tbody td tfoot th thead tr u ul".split()
)
_WITH_CONTENT = re.compile(r"<(script|style|title)\b.*?(</\1\s*>|\Z)", re.IGNORECASE | re.DOTALL)
_IMAGE = re.compile(r"data:image/(png|jpeg|gif);base64,[A-Za-z0-9+/=\s]*")
_ALIGN = re.compile(r"text-align:\s*(left|right|center);?")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/svg+xml")


def notebook_page(source: Path) -> str:
    """The notebook in `source` as HTML.

    Raises:
        OSError, ValueError: it can't be read.
    """
    import nbformat
    from jinja2 import Environment, FileSystemLoader
    from pygments.formatters import HtmlFormatter

    notebook = nbformat.read(source, as_version=4)
    cells = [
        {
            "kind": cell.cell_type,
            "body": _code(cell.source) if cell.cell_type == "code" else _markdown(cell),
            "outputs": [_output(output) for output in cell.get("outputs", [])],
        }
        for cell in notebook.cells
        if cell.cell_type in ("code", "markdown") and cell.source.strip()
    ]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    style = HtmlFormatter().get_style_defs(".highlight")
    return environment.get_template("notebook.html.j2").render(title=source.parent.name, cells=cells, style=style)


def _safe(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _code(source: str) -> Any:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return _safe(highlight(source, PythonLexer(), HtmlFormatter()))


def _output(output: Mapping[str, Any]) -> Any:
    """One output of a cell: an image, a table or text, the richest form that can be shown."""
    data = output.get("data", {})
    for kind in _IMAGES:
        if kind in data:
            raw = data[kind] if isinstance(data[kind], str) else "".join(data[kind])
            encoded = base64.b64encode(raw.encode()).decode() if kind.endswith("xml") else "".join(raw.split())
            if re.fullmatch(r"[A-Za-z0-9+/=]*", encoded):  # an image in an img element runs no scripts, SVG neither
                return _safe(f'<img alt="figure" src="data:{kind};base64,{encoded}">')
    if "text/html" in data:
        return _safe(_clean("".join(data["text/html"]), {}))
    for kind in ("text/markdown", "text/latex"):
        if kind in data:
            return _markdown({"source": "".join(data[kind])})
    text = output.get("text") or data.get("text/plain") or "\n".join(output.get("traceback", []))
    return _ANSI.sub("", "".join(text))


# --- markdown ------------------------------------------------------------------------------------------------------------------


def _markdown(cell: Mapping[str, Any]) -> Any:
    from nbconvert.filters.markdown_mistune import InvalidNotebook, MarkdownWithMath

    renderer = _renderer_class()(attachments=cell.get("attachments") or {})
    try:
        text = MarkdownWithMath(renderer=renderer).render(cell["source"])
    except (InvalidNotebook, RecursionError):  # an attachment is missing, or lists in lists without end
        return cell["source"]
    return _safe(_clean(text, renderer.formulas))


@cache
def _renderer_class() -> type:
    from nbconvert.filters.markdown_mistune import IPythonRenderer

    class Renderer(IPythonRenderer):
        """Formulas become marks that nobody can guess; after cleaning they are put in where the marks stand as text."""

        def __init__(self, attachments: dict):
            super().__init__(escape=False, exclude_anchor_links=True, attachments=attachments)
            self.formulas: dict[str, tuple[str, bool]] = {}

        def _mark(self, latex: str, block: bool) -> str:
            mark = f"formula-{secrets.token_hex(16)}"
            self.formulas[mark] = (latex, block)
            return mark

        def inline_math(self, body: str) -> str:
            return self._mark(body, False)

        def block_math(self, body: str) -> str:
            return self._mark(body, True)

        def latex_environment(self, name: str, body: str) -> str:
            return self._mark(f"\\begin{{{name}}}{body}\\end{{{name}}}", True)

    return Renderer


# --- cleaning ------------------------------------------------------------------------------------------------------------------


def _attribute(tag: str, name: str, value: str) -> bool:
    """Whether an element may keep an attribute."""
    if name == "href":
        return tag == "a" and value.startswith("#")
    if name == "src":
        return tag == "img" and bool(_IMAGE.fullmatch(value))
    if name == "style":
        return tag in ("td", "th") and bool(_ALIGN.fullmatch(value))
    if name in ("colspan", "rowspan", "width", "height", "start"):
        return bool(re.fullmatch(r"[0-9]{1,4}", value))
    if name in ("class", "id"):
        return bool(re.fullmatch(r"[\w -]*", value))
    return name == "alt"


def _clean(text: str, formulas: Mapping[str, tuple[str, bool]]) -> str:
    """HTML without anything that runs or loads; marks that stand as text become their formulas."""
    from bleach.css_sanitizer import CSSSanitizer
    from bleach.html5lib_shim import Filter
    from bleach.sanitizer import Cleaner

    class Formulas(Filter):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            for token in super().__iter__():
                if token["type"] == "Characters" and formulas:
                    yield from _with_formulas(token["data"], formulas)
                else:
                    yield token

    cleaner = Cleaner(
        tags=_TAGS,
        attributes=_attribute,
        protocols={"data"},
        strip=True,
        css_sanitizer=CSSSanitizer(allowed_css_properties=["text-align"]),
        filters=[Formulas],
    )
    return cleaner.clean(_WITH_CONTENT.sub("", text))


def _with_formulas(text: str, formulas: Mapping[str, tuple[str, bool]]) -> Iterator[dict[str, Any]]:
    for part in re.split(r"(formula-[0-9a-f]{32})", text):
        if part in formulas:
            yield from formula_tokens(*formulas[part])
        elif part:
            yield {"type": "Characters", "data": part}
