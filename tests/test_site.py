"""The documentation as a site, and the pages whose examples are run here."""

import doctest
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import qcsbm


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site's folder, built as `make docs` does."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", ROOT / "docs", folder]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_needs_no_network(site):
    pages = {path.name: path.read_text() for path in site.rglob("*.html")}
    for page in (ROOT / "docs").glob("*.md"):
        assert f"{page.stem}.html" in pages
    for name, text in pages.items():
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"(.*?)\"", text)
        loaded += re.findall(r"<link[^>]* rel=\"stylesheet\"[^>]* href=\"(.*?)\"", text)
        assert loaded and not [url for url in loaded if "//" in url], name
    # Formulas of pages and of docstrings are laid out, entries of references listed.
    assert "<mfrac>" in pages["conservative.html"] and "$$" not in pages["conservative.html"]
    room = pages["conservativeness.html"]
    assert "<msubsup>" in room and "<li><p>A Stochastic Estimator" in room
    for name in qcsbm.__all__:
        assert f'id="qcsbm.{name}"' in pages["api.html"]
    for option in ("--products", "--configfile", "--watch"):
        assert option in pages["commands.html"]


def test_the_first_page_does_what_it_says():
    result = doctest.testfile(str(ROOT / "docs/start.md"), module_relative=False)
    assert result.attempted > 5 and result.failed == 0
