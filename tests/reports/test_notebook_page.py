"""kdnb.reports.notebook_page: what a notebook shows is on the page, and nothing that runs or loads."""

import re
from pathlib import Path

import nbformat
import pytest

from kdnb.reports.notebook_page import notebook_page

V4 = nbformat.v4
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


@pytest.fixture
def body(tmp_path):
    """The body of the page of a notebook with these cells."""

    def render(*cells):
        path = tmp_path / "notebook.ipynb"
        nbformat.write(V4.new_notebook(cells=list(cells)), path)
        return notebook_page(path).partition("<body>")[2]

    return render


def text(source):
    return V4.new_markdown_cell(source)


def shows(kind, data):
    return V4.new_code_cell("x", outputs=[V4.new_output("display_data", {kind: data})])


def test_headings_lists_tables_and_code_of_the_text_are_elements(body):
    html = body(
        text("# Title\n\nA *word*.\n\n- one\n- two\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n```python\nx = 1\n```")
    )
    for element in (
        "<h1>Title</h1>",
        "<em>word</em>",
        "<li>one</li>",
        "<table>",
        "<td>1</td>",
        "text-align:right",
        "<pre",
    ):
        assert element in html, html
    assert "&lt;h1" not in html and "&lt;p" not in html


def test_formulas_are_mathml(body):
    html = body(text("With $\\tau > 0$:\n\n$$L = \\tau^2 \\sum_k p_k < 1$$"))
    assert '<math display="inline"><mrow><mi>τ</mi><mo>&gt;</mo><mn>0</mn></mrow></math>' in html
    assert '<math display="block">' in html and "<msup>" in html and "$" not in html


def test_an_unreadable_formula_shows_its_source(body):
    assert "<code>\\frac{</code>" in body(text("$\\frac{$"))


def test_tables_images_streams_and_errors_of_the_outputs_are_shown(body):
    html = body(
        shows(
            "text/html", "<div><style scoped>.dataframe {color: red}</style><table><tr><td>0.5</td></tr></table></div>"
        ),
        shows("image/png", PIXEL),
        V4.new_code_cell("x", outputs=[V4.new_output("stream", text="\x1b[31mloss\x1b[0m < 1")]),
        V4.new_code_cell("x", outputs=[V4.new_output("error", ename="E", evalue="v", traceback=["\x1b[0mE: v"])]),
    )
    assert "<td>0.5</td>" in html and "dataframe" not in html
    assert f'src="data:image/png;base64,{PIXEL}"' in html
    assert "<pre>loss &lt; 1</pre>" in html and "<pre>E: v</pre>" in html


def test_code_is_shown_as_text(body):
    html = body(V4.new_code_cell("print('</div><script>evil()</script>')"))
    assert "<script" not in html and "evil" in html


HOSTILE = (
    "<script>evil()</script>",
    "<ScRiPt src=//example.org/x.js></sCrIpT>",
    "<img src=x onerror=evil()>",
    "<img src='https://example.org/x.png'>",
    "![x](https://example.org/x.png)",
    "![x](data:image/svg+xml;base64,PHN2Zy8+)",
    "<a href='javascript:evil()'>x</a>",
    "[x](javascript:evil())",
    "[x](https://example.org)",
    "<iframe src='https://example.org'></iframe>",
    "<table background='https://example.org/x.png'><tr><td style='background:url(https://example.org)'>1</td></tr></table>",
    "<style>@import 'https://example.org/x.css';</style>",
    "<link rel=stylesheet href='https://example.org/x.css'>",
    "<svg><script>evil()</script></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=evil()>",
    "<noscript><p title='</noscript><img src=x onerror=evil()>'>",
    "<form action='https://example.org'><input></form>",
    r"$\href{javascript:evil()}{x}$",
    r"$\text{<script>evil()</script>}$",
    r"$\style{background:url(https://example.org)}{x}$",
    r"![$\text{x' onerror='evil()}$](x)",
    "<img alt='$$x$$' src=x>",
    "<meta http-equiv=refresh content='0;url=https://example.org'>",
    "<base href='https://example.org'>",
)


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("where", ["text", "text/html", "text/markdown", "text/latex"])
def test_nothing_runs_and_nothing_is_loaded(body, hostile, where):
    html = body(text(hostile) if where == "text" else shows(where, hostile))
    tags = re.findall(r"<[a-zA-Z][^>]*>", html)
    assert not re.search(r"<(script|style|iframe|link|svg|form|input|meta|base|object|embed)\b", html, re.IGNORECASE)
    for tag in tags:
        assert not re.search(r"\son\w+=|javascript:|https?:|//|url\(", tag), tag


@pytest.mark.parametrize("kind", ["image/png", "image/svg+xml"])
def test_an_image_that_is_none_can_not_leave_its_element(body, kind):
    html = body(shows(kind, '"><script>evil()</script>'))
    assert "<script" not in html


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_formula_of_our_notebooks_is_shown(path):
    html = notebook_page(path)
    source = "".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    formulas = re.findall(r"\$\$.+?\$\$|\$[^$\n]+?\$", source, re.DOTALL)
    assert html.count("<math") == len(formulas)
    assert not [part for part in re.findall(r"<math.*?</math>", html, re.DOTALL) if "\\" in part]
    assert len(re.findall(r"<h[1-6]", html)) >= 3 and "&lt;p&gt;" not in html
