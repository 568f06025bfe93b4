"""How `make docs` makes a site of this folder and of the docstrings, without a network."""

import re
import sys
import tomllib
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import qcsbm  # noqa: E402

project = "qcsbm"
release = qcsbm.__version__
html_title = "qcsbm"
html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
pygments_style, pygments_dark_style = "friendly", "monokai"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_argparse_cli",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "model_config"}
autodoc_typehints_format = "short"
autodoc_use_type_comments = False
toc_object_entries = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
default_role = "py:obj"

# Other packages are not asked where their names are documented.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!qcsbm\.).*"), ("py:class", r".*\.(Annotated|as_\w+)")]
# It takes the annotation `type` for an attribute of that name.
suppress_warnings = ["ref.python"]
html_math_renderer = "mathml"


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (math("inline"), None), (math("block"), None))
    app.connect("builder-inited", write_rooms)
    app.connect("source-read", offer_pages_outside)
    app.connect("autodoc-process-signature", hide_signature_of_settings)
    # Before napoleon makes a section of them.
    app.connect("autodoc-process-docstring", list_references, priority=400)
    app.connect("missing-reference", short_name)


def math(display: str) -> Any:
    """What writes a formula as MathML, which browsers lay out by themselves."""

    def visit(writer: Any, node: nodes.Element) -> None:
        writer.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode

    return visit


def write_rooms(app: Sphinx) -> None:
    """A page for each room of the package, in the order of the contract on imports."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    layers = tools["importlinter"]["contracts"][0]["layers"]
    rooms = [layer for layer in layers if (ROOT / "qcsbm" / layer).is_dir()]
    folder = Path(app.srcdir, "reference")
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.stem not in {"index", *rooms}:
            path.unlink()
    pages = {"index": ["# Rooms", "```{toctree}", ":maxdepth: 1", *rooms, "```"]}
    for room in rooms:
        package = f"qcsbm.{room}"
        inside = walk_packages([str(ROOT / "qcsbm" / room)], f"{package}.")
        pages[room] = [f"# {room}", *automodule(package)]
        for name in sorted(module.name for module in inside):
            pages[room] += [f"## {name.removeprefix(f'{package}.')}", *automodule(name)]
    for name, lines in pages.items():
        text = "\n".join([*lines, ""])
        path = folder / f"{name}.md"
        # What did not change is not read again.
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def automodule(name: str) -> list[str]:
    options = [":members:", ":ignore-module-all:"]
    return ["```{eval-rst}", f".. automodule:: {name}", *(f"   {o}" for o in options), "```"]


def offer_pages_outside(app: Sphinx, page: str, source: list[str]) -> None:
    """Those that are no part of the site are files to download, as all others outside of docs/."""
    source[0] = re.sub(r"\]\((\.\./[^)#]+\.md)\)", r"](path:\1)", source[0])


def hide_signature_of_settings(app: Sphinx, what: str, name: str, obj: Any, *_: Any) -> Any:
    """Their keys are listed one by one."""
    return ("", None) if isinstance(obj, type) and issubclass(obj, BaseModel) else None


def list_references(app: Sphinx, what: str, name: str, obj: Any, _: Any, lines: list[str]) -> None:
    """Make an item of each entry below ``References:``, whose lines are all indented alike."""
    if "References:" not in lines:
        return
    entry = ""
    for i in range(lines.index("References:") + 1, len(lines)):
        line = lines[i].strip()
        if not line:
            break
        goes_on = entry and not is_complete(entry, line)
        entry = f"{entry} {line}" if goes_on else line
        lines[i] = f"      {line}" if goes_on else f"    * {line}"


def is_complete(entry: str, line: str) -> bool:
    """Whether the ``line`` after an ``entry`` begins another one."""
    if entry.split()[-1].startswith("http"):
        return True
    if entry.endswith((",", ";")) or (line[0].islower() and not line.startswith("http")):
        return False
    return "http" in entry or re.search(r"\(.*\d{4}\)", entry) is not None


def short_name(app: Sphinx, env: BuildEnvironment, node: Any, content: Any) -> Any:
    """The object that a docstring names by the last part of its name."""
    if node["reftype"] != "obj":
        return None
    name = node["reftarget"]
    found = env.domains.python_domain.find_obj(env, None, None, name, None, searchmode=1)
    if not found:
        return None
    # The public name, if there is one.
    name, entry = min(found, key=lambda item: len(item[0]))
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)
