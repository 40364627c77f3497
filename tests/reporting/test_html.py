import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser

import pytest

from convpeft.errors import OptionError, RunError
from convpeft.reporting import (
    Code,
    Figure,
    KeyFigure,
    KeyFigures,
    Notes,
    ReportContent,
    Table,
    Text,
    figure_bytes,
    render_report,
    write_report,
)
from convpeft.reporting.canvas import new_figure

PNG = figure_bytes(new_figure(2, 1))
SVG = figure_bytes(new_figure(2, 1), form="svg")

# The tags and attributes of the template itself; nothing else may ever appear.
TAGS = {"html", "head", "meta", "title", "style", "body", "header", "nav", "main", "section", "footer"}
TAGS |= {"h1", "h2", "p", "a", "ul", "li", "dl", "div", "dt", "dd", "details", "summary", "img", "pre", "code"}
TAGS |= {"table", "thead", "tbody", "tr", "th", "td"}
ATTRIBUTES = {"lang", "charset", "http-equiv", "content", "name", "class", "id", "href", "src", "width", "alt"}
ATTRIBUTES |= {"aria-label", "role", "scope", "tabindex"}

PAYLOADS = [
    "<script>{}</script>",
    "</script><script>{}</script>",
    "</style><script>{}</script>",
    "</title><script>{}</script>",
    "</code></pre><script>{}</script>",
    "--><script>{}</script><!--",
    "]]><script>{}</script>",
    "<img src=x onerror={}>",
    '"><img src=x onerror="{}">',
    "'><img src=x onerror='{}'>",
    '" onmouseover="{}" x="',
    "' onfocus='{}' autofocus='",
    "<svg onload={}>",
    "<svg><script>{}</script></svg>",
    "<iframe src='javascript:{}'></iframe>",
    "javascript:{}",
    "<a href='javascript:{}'>x</a>",
    "<body onload={}>",
    "<meta http-equiv=refresh content='0;url=javascript:{}'>",
    "<base href='javascript:{}//'>",
    "<link rel=stylesheet href='data:text/css,*{{x:{}}}'>",
    "<object data='javascript:{}'>",
    "<form action='javascript:{}'><input type=submit>",
    "<details open ontoggle={}>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror={}>",
    "{{{{ ''.__class__.__mro__ }}}}{}",
    "{{% for x in range(9) %}}{}{{% endfor %}}",
    "&lt;script&gt;{}&lt;/script&gt;",
    "&#60;script&#62;{}",
    "\\u003cscript\\u003e{}",
    "\x00<scr\x00ipt>{}</script>",
    "\udc3cscript\udc3e{}",
    "\u202e<script>{}</script>",
    "<scr\nipt>{}</script>",
]
ACTIONS = ["alert(1)", "document.title='OWNED'", "fetch('https://example.invalid')"]


def everywhere(text):
    """Put a string into every place of a report that takes one."""
    return ReportContent(
        title=text,
        summary=text,
        subtitle=text,
        footer=text,
        sections=(
            KeyFigures((KeyFigure(text, text, text),)),
            Text(text, (text, text)),
            Table(text, (text, text), ((text, text), (text, 3)), caption=text, emphasis=0),
            Table(text, (text,), ((text,),), caption=text, folded=True),
            Figure(text, text, PNG, text),
            Figure(text, text, SVG),
            Code(text, text, text),
            Code(text, text, text, folded=True),
            Notes(text, (text,), warning=True),
            Notes(text, (text,)),
        ),
    )


class Reader(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text, self.stack = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "img"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def skeleton(page):
    reader = Reader(page)
    shown = [(tag, name) for tag, name, _ in reader.attributes]
    return reader.tags, shown


@pytest.fixture(scope="module")
def harmless():
    return skeleton(render_report(everywhere("a harmless long name")))


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("action", ACTIONS)
def test_hostile_names_are_inert_text(payload, action, harmless):
    text = payload.format(action)
    page = render_report(everywhere(text))
    reader = Reader(page)
    assert set(reader.tags) <= TAGS
    assert {name for _, name, _ in reader.attributes} <= ATTRIBUTES
    assert skeleton(page) == harmless
    assert not re.search("[\x00\u202e\ud800-\udfff]", page)
    for _, name, value in reader.attributes:
        if name == "href":
            assert re.fullmatch(r"#section-\d+", value)
        if name == "src":
            assert value.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,"))


def test_names_are_shown_letter_by_letter():
    text = "<b> & \"quoted\" 'name' {{ 7 * 7 }}"
    assert Reader(render_report(everywhere(text))).text.count(text) >= 20


def test_policy_allows_the_own_style_and_inline_images_only():
    page = render_report(everywhere("x"))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert [rule.strip() for rule in policy.split(";")] == [
        "default-src 'none'",
        "img-src data:",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert page.index("Content-Security-Policy") < page.index("<title>") < page.index("<style>")


def test_page_names_no_outside_address():
    page = re.sub(r'src="data:[^"]*"', "", render_report(everywhere("x")))
    assert not re.search(r"https?:|//|url\(|@import", page)


def test_page_has_no_inline_style_that_its_policy_would_block():
    assert "style=" not in render_report(everywhere("x"))


def test_figures_are_whole_and_keep_their_size():
    reader = Reader(render_report(everywhere("x")))
    images = [dict(attributes) for attributes in _images(reader)]
    assert base64.b64decode(images[0]["src"].partition(",")[2]) == PNG
    assert base64.b64decode(images[1]["src"].partition(",")[2]) == SVG
    # Two inches at the 96 pixels an inch of CSS.
    assert images[0]["width"] == "192"


def _images(reader):
    found = []
    for tag, name, value in reader.attributes:
        if tag == "img":
            if name == "alt":
                found.append([])
            found[-1].append((name, value))
    return found


def test_every_link_of_the_contents_leads_somewhere():
    reader = Reader(render_report(everywhere("x")))
    targets = {value for _, name, value in reader.attributes if name == "id"}
    links = {value[1:] for _, name, value in reader.attributes if name == "href"}
    assert len(links) == 9
    assert links <= targets


def test_columns_of_numbers_are_flush_right_and_the_first_is_not():
    rows = (("1", 12345, "97.3 % [96.8, 97.7]", "a", None), ("2", None, "1 min 14 s", "3", 0.5))
    page = render_report(ReportContent("t", "", (Table("", ("n", "p", "q", "r", "s"), rows),)))
    cells = re.findall(r"<(?:td|th)([^>]*)>([^<]*)<", page)
    right = {text for attributes, text in cells if "number" in attributes}
    assert right == {"p", "q", "s", "12,345", "97.3 % [96.8, 97.7]", "\u2013", "1 min 14 s", "0.500"}
    assert 'scope="row">1<' in page


def test_emphasis_marks_its_row_alone():
    page = render_report(ReportContent("t", "", (Table("", ("n",), (("a",), ("b",)), emphasis=1),)))
    assert re.findall(r'<tr class="emphasis">\s*<th scope="row">(.)<', page) == ["b"]


def test_an_empty_table_and_an_empty_report_render():
    page = render_report(ReportContent("t", "", (Table("nothing", ("a", "b"), ()),)))
    assert "nothing" in page
    assert "<h1>t</h1>" in render_report(ReportContent("t", "", ()))


def test_every_kind_of_section_is_rendered():
    report = everywhere("x")
    for section in report.sections:
        marked = dataclasses.replace(report, sections=(section,))
        assert render_report(marked).count(">x<") > render_report(dataclasses.replace(report, sections=())).count(">x<")


def test_lines_of_code_stay_lines():
    page = render_report(ReportContent("t", "", (Code("recipe", "[a]\nb = 1\n"),)))
    assert "<code>[a]\nb = 1\n</code>" in page


def test_equal_reports_give_equal_files(tmp_path):
    write_report(tmp_path / "a.html", everywhere("x"))
    write_report(tmp_path / "b.html", everywhere("x"))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == render_report(everywhere("x"))


def test_a_ragged_table_is_refused_and_nothing_written(tmp_path):
    table = Table("scores", ("a", "b"), (("x", 1), ("y",)))
    with pytest.raises(
        OptionError, match=r"table 'scores', row 2: expected 2 cells as there are headers, got 1\. Use None"
    ):
        write_report(tmp_path / "report.html", ReportContent("t", "", (table,)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("image", [b"", b"GIF89a", b"<html><script>", b"\xff\xd8\xff"])
def test_an_image_of_another_kind_is_refused(image):
    with pytest.raises(OptionError, match=r"expected the figure 'f' as PNG or SVG bytes, .* Pass figure_bytes"):
        render_report(ReportContent("t", "", (Figure("f", "", image),)))


def test_a_report_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match=r"Cannot write .*report\.html: "):
        write_report(tmp_path / "file" / "report.html", ReportContent("t", "", ()))
