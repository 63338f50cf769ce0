import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from lq.report.html import Section, write_report
from lq.report.plots.style import new_figure

ROWS = [{"model": "FP32 <b>", "accuracy": 0.91714, "kept": True, "note": None}, {"model": "int8", "accuracy": 2}]


class Checker(HTMLParser):
    """Every element that is opened is closed, in order."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def page(tmp_path):
    figure, (axis,) = new_figure(3, 2)
    axis.plot([0, 1])
    saved = tmp_path / "saved.png"
    figure.savefig(saved)
    sections = [
        Section("Result & more", "First.\n\nSecond <i>.", rows=ROWS),
        Section("Pictures", figures=[(figure, 'a "line"'), (saved, "again")]),
        Section("Plan", code="a < b", folded=True),
    ]
    return write_report(tmp_path / "deep" / "report.html", "A <title>", sections).read_text()


def test_it_is_well_formed_and_all_text_is_text(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert [tag for tag, _ in checker.seen if tag in ("script", "link", "b", "i")] == ["script"]  # the page's own
    for text in ("<title>A &lt;title&gt;</title>", "Second &lt;i&gt;.", "FP32 &lt;b&gt;", "<pre>a &lt; b</pre>"):
        assert text in page


def test_nothing_comes_from_the_network(page):
    assert not re.search(r"(?:src|href)=[\"'](?!data:image/png;base64,|#)", page)
    assert "http" not in page
    assert "url(" not in page


def test_pictures_are_inline_and_say_what_they_show(page):
    checker = Checker()
    checker.feed(page)
    images = [attributes for tag, attributes in checker.seen if tag == "img"]
    assert [image["alt"] for image in images] == ['a "line"', "again"]
    assert all(len(image["src"]) > 1000 for image in images)


def test_tables_have_all_columns_and_figures_stand_right(page):
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    cells = [re.findall(r">([^<>]*)</t[hd]>", row) for row in rows]
    assert cells == [
        ["model", "accuracy", "kept", "note"],
        ["FP32 &lt;b&gt;", "0.9171", "yes", "-"],
        ["int8", "2", "-", "-"],
    ]
    assert '<th class="n" scope="col">accuracy' in rows[0]
    assert '<th scope="col">model' in rows[0]


def test_an_infinite_figure_is_a_figure(tmp_path):
    rows = [{"model": "a", "SQNR, dB": "45.9"}, {"model": "b", "SQNR, dB": "inf"}]
    text = write_report(tmp_path / "x.html", "T", [Section("S", rows=rows)]).read_text()
    assert '<td class="n">inf</td>' in text


def test_links_lead_somewhere(page):
    names = re.findall(r'href="#(\w+)"', page)
    assert len(names) == 3
    assert all(f'<section id="{name}">' in page for name in names)


def test_what_is_folded_can_be_opened(page):
    assert "<details><summary>show</summary>\n<pre>" in page


def test_it_is_made_for_phones_and_paper(page):
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in page
    assert "@media print" in page


def test_an_empty_page_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no sections"):
        write_report(tmp_path / "report.html", "x", [])


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ACT = """<script>
const heading = n => document.querySelectorAll("thead th")[n];
const shown = () => [...document.querySelectorAll("tbody tr")].filter(row => !row.hidden);
const column = () => shown().map(row => row.cells[1].textContent);
const said = [column()];
heading(1).click(); said.push(column());
heading(1).click(); said.push(column());
const search = document.querySelector("input");
search.value = "LAYER 1"; search.oninput(); said.push(column());
document.body.innerHTML = "<pre>" + said.map(part => part.join(" ")).join("|") + "</pre>";
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_long_tables_are_sorted_and_searched(tmp_path):
    values = [5, 30, 4, 2.5, 11, 0, 1, 9, 8, 7, 6, 3]
    rows = [{"layer": f"layer {index}", "share": value} for index, value in enumerate(values)]
    path = write_report(tmp_path / "report.html", "Title", [Section("Layers", rows=rows)])
    path.write_text(path.read_text().replace("</body>", f"{ACT}</body>"))
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]
    done = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)[1]
    before, down, up, searched = (list(map(float, part.split())) for part in found.split("|"))
    assert before == values
    assert down == sorted(values, reverse=True)
    assert up == sorted(values)
    assert sorted(searched) == sorted([values[1], values[10], values[11]])
