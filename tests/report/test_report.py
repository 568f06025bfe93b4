"""The report: self-contained, and in a browser it shows every table and figure without network."""

import base64
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import snakemake
from docutils.core import publish_parts
from jinja2 import Environment

from qcsbm.report import pages
from qcsbm.report.pages import Section

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

# Requests to anything but the page itself are refused and listed.
POLICY = """<head><meta http-equiv="Content-Security-Policy"
 content="default-src 'unsafe-inline' 'unsafe-eval' data: blob:">"""
LOOK = """
<script>
const blocked = [], seen = {};
document.addEventListener("securitypolicyviolation", event => blocked.push(event.blockedURI));
const moment = () => new Promise(done => setTimeout(done, 100));
addEventListener("load", async () => {
  while (!app) await moment();
  const first = document.querySelector("#app .prose").innerText;
  const viewer = new ToggleViewManager(app);
  for (const path of Object.keys(results)) {
    viewer.handleSelectedResult(path);
    await moment();
    const image = document.querySelector("#app .p-3 > img");
    const page = document.querySelector("iframe");
    const shown = image || page;
    const right = shown && shown.src === results[path].data_uri;
    seen[path] = right && (image ? image.naturalWidth : page.clientWidth);
  }
  const found = document.createElement("pre");
  found.id = "found";
  found.textContent = JSON.stringify({blocked, seen, first, menu: Object.keys(categories).sort()});
  document.body.append(found);
});
</script>
</body>"""


@pytest.fixture(scope="module")
def report(ci):
    """The report on the ci tier."""
    arguments = ["all", "--cores", "1", "--configfile", ROOT / "config/ci.yaml"]
    arguments += ["--report", ci / "report.html"]
    result = snakemake(*arguments, cwd=ci.parent.parent)
    assert result.returncode == 0, result.stderr[-4000:]
    return (ci / "report.html").read_text()


def browse(page, tmp_path):
    """What a headless browser finds on ``page``: requests it refused, and results it showed."""
    path = tmp_path / "page.html"
    head, tail = page.replace("<head>", POLICY, 1).rsplit("</body>", 1)
    path.write_text(head + LOOK + tail)
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--no-first-run", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=30000", path.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    return json.loads(unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1]))


def first_page(*paths):
    """The first page as Snakemake makes it of a report that has the results at ``paths``."""
    rule = SimpleNamespace(rule=SimpleNamespace(name="table"))
    files = [SimpleNamespace(path=path, target=path.name, job=rule) for path in paths]
    links = "".join(f"\n.. _{path.name}: javascript:void(0)\n" for path in paths)
    template = Environment(trim_blocks=True, lstrip_blocks=True).from_string(
        (ROOT / "workflow/report/workflow.rst").read_text() + links
    )
    told = SimpleNamespace(config={"tier": "ci"})
    return publish_parts(
        template.render(snakemake=told, categories={}, files=files),
        writer="html",
        settings_overrides={"halt_level": 2},
    )["html_body"]


def test_first_page_has_the_tables_that_were_made_and_says_that_claims_were_not(tmp_path):
    path = tmp_path / "table4.html"
    path.write_text(
        pages.html("Quality", [Section("D & E", ["x", "y"], [["a", "1"]], ["A note."])])
    )
    page = first_page(path)
    assert "was not made" in page
    assert "<p>Quality.</p>" in page and "<h3>D &amp; E</h3>" in page and "A note." not in page
    assert '<td class="left">a</td><td>1</td>' in page


def test_first_page_of_nothing_has_no_table():
    assert "was not made" in first_page() and "<table" not in first_page()


@pytest.mark.slow
def test_report_holds_tables_figures_and_captions_themselves(report):
    results = json.loads(re.search(r"^\s*var results = (\{.*\});$", report, re.MULTILINE)[1])
    pages = {Path(path).stem for path in results if path.endswith(".html")}
    assert pages == {"claims", "table2", "table3", "cost", "figure1", "figure4"}
    pictures = {"asymmetry", "learning_curves", "metrics_by_seed", "quality_against_compute"}
    figures = [Path(path) for path in results if path.endswith(".png")]
    for dataset in ("digits", "patches"):
        named = {path.stem for path in figures if path.parent.name == dataset}
        assert named == pictures | {"figure3_pc"}
    for entry in results.values():
        assert entry["data_uri"].startswith("data:") and len(entry["caption"]) > 60
    claims = next(entry for path, entry in results.items() if path.endswith("claims.html"))
    page = base64.b64decode(claims["data_uri"].split("base64,")[1]).decode()
    assert "undecided (one seed)" in page


@pytest.mark.slow
@needs_chromium
def test_browser_shows_every_result_and_asks_for_nothing_else(report, ci, tmp_path):
    found = browse(report, tmp_path)
    assert found["blocked"] == []
    assert found["menu"] == ["Claims", "Figures", "Motivational examples", "Tables"]
    assert len(found["seen"]) == 6 + 2 * 5 + 2 and all(found["seen"].values())
    # The first page has what the claims and both tables have in the folder of results.
    shown = [line.split("\t") for line in found["first"].splitlines()]
    for name, rows in (("claims", 7), ("table2", 8), ("table3", 8)):
        lines = (ci / f"{name}.md").read_text().splitlines()
        numbers = [line.strip("|").split("|") for line in lines if re.match(r"\| .*\d", line)]
        for row in numbers[:rows]:
            assert [cell.strip() for cell in row] in shown


@pytest.mark.slow
@needs_chromium
def test_a_request_that_leaves_the_machine_would_be_seen(report, tmp_path):
    wanted = "http://example.invalid/picture.png"
    head, tail = report.rsplit("</body>", 1)
    page = f'{head}<img src="{wanted}"></body>{tail}'
    assert browse(page, tmp_path)["blocked"] == [wanted]
