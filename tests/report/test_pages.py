"""Pages of tables in Markdown and HTML."""

import re
import xml.etree.ElementTree as ET

from qcsbm.report.pages import Section, html, markdown

SECTIONS = [
    Section("Numbers", ["name", "kind", "x"], [["a", "b", "1"], ["<c> & d", "", "2e-3"]], left=2),
    Section("More", ["name", "y"], [["e", "3"]], ["A note with x < y."]),
]


def test_markdown_has_headings_aligned_columns_and_notes():
    assert markdown("Title", SECTIONS) == (
        "# Title\n\n"
        "## Numbers\n\n"
        "| name    | kind   |    x |\n"
        "|:--------|:-------|-----:|\n"
        "| a       | b      |    1 |\n"
        "| <c> & d |        | 2e-3 |\n\n"
        "## More\n\n"
        "| name   |   y |\n"
        "|:-------|----:|\n"
        "| e      |   3 |\n\n"
        "- A note with x < y.\n"
    )


def test_html_is_well_formed_and_shows_the_texts_as_they_are():
    page = re.sub("<meta[^>]*>", "", html("Title", SECTIONS))
    root = ET.fromstring(page.removeprefix("<!doctype html>"))
    first, second = root.iter("table")
    assert [cell.text for cell in first.iter("td")] == ["a", "b", "1", "<c> & d", None, "2e-3"]
    assert [cell.get("class") for cell in second.iter("th")] == ["left", None]
    assert [note.text for note in root.iter("li")] == ["A note with x < y."]


def test_code_in_notes_is_code_in_html_as_in_markdown():
    notes = ["`fd <x>` in `metrics.csv` has less bias."]
    sections = [Section("Numbers", ["name", "x"], [["`a`", "1"]], notes)]
    page = html("Title", sections)
    assert "<li><code>fd &lt;x&gt;</code> in <code>metrics.csv</code> has less bias.</li>" in page
    assert f"- {notes[0]}\n" in markdown("Title", sections)


def test_html_refers_to_nothing_outside_itself():
    page = html("Title", SECTIONS)
    assert "http" not in page and "src=" not in page and "href=" not in page
