"""What README and `docs/study.md` say of the study stands in its numbers."""

import json
import re
import runpy
from decimal import Decimal
from pathlib import Path

import pytest
from conftest import ROOT

STUDY = ROOT / "docs/study"
NUMBER = r"[−+]?\d[\d.]*(?:e[−+]?\d+)?"
EFFECT = re.compile(rf"(× )?({NUMBER}) \[({NUMBER}), ({NUMBER})\]")
# Each page, and the heading of the part that quotes effects.
PAGES = {"README.md": "## What it shows", "docs/study.md": "## What was found"}

pytestmark = pytest.mark.skipif(
    not (STUDY / "claims.json").exists(), reason="no part of the study is committed"
)


def part(page):
    """The lines of ``page`` below its heading, up to the next one."""
    _, text = (ROOT / page).read_text().split(f"\n{PAGES[page]}\n", 1)
    return text.split("\n## ", 1)[0]


def quoted(text):
    """(scale, effect, low, high) of all effects in ``text``, as decimal numbers."""
    for ratio, *numbers in EFFECT.findall(text.replace("\N{NO-BREAK SPACE}", " ")):
        values = [Decimal(number.replace("−", "-")) for number in numbers]
        yield "ratio" if ratio else "difference", *values


def is_of(effect, claim):
    """Whether ``effect`` is that of ``claim``, rounded to the digits that it has."""
    scale, *numbers = effect
    return claim["scale"] == scale and all(
        claim[key] is not None and round(Decimal(claim[key]), -number.as_tuple().exponent) == number
        for key, number in zip(("effect", "low", "high"), numbers, strict=True)
    )


@pytest.mark.parametrize("page", PAGES)
def test_every_effect_is_that_of_a_comparison_of_the_study_or_of_the_quick_tier(page):
    claims = json.loads((STUDY / "claims.json").read_text())["claims"]
    of_quick_tier = list(quoted((ROOT / "docs/quick.md").read_text()))
    effects = list(quoted(part(page)))
    assert effects
    for effect in effects:
        of_study = any(is_of(effect, claim) for claim in claims)
        assert of_study or (page == "README.md" and effect in of_quick_tier), effect


def test_the_page_has_the_table_of_all_effects():
    table = runpy.run_path(str(ROOT / "docs/study.py"))["table"]
    claims = json.loads((STUDY / "claims.json").read_text())["claims"]
    assert table(claims) in part("docs/study.md")


def test_the_picture_is_that_of_the_claims(tmp_path):
    script = runpy.run_path(str(ROOT / "docs/study.py"))
    claims = json.loads((STUDY / "claims.json").read_text())["claims"]
    script["draw"](claims).savefig(tmp_path / "effects.svg", metadata={"Date": None})
    assert Path(tmp_path / "effects.svg").read_bytes() == (STUDY / "effects.svg").read_bytes()


def test_the_page_has_the_relations_of_the_sweep_of_the_regularisers_weight(
    capsys, monkeypatch, tmp_path
):
    script = runpy.run_path(str(ROOT / "benchmarks/asymmetry_and_quality.py"))
    numbers, out = STUDY / "asymmetry_and_quality.csv", tmp_path / "asymmetry_and_quality.svg"
    monkeypatch.setattr("sys.argv", ["x", str(numbers), "--out", str(out)])
    script["main"]()
    assert capsys.readouterr().out.split("\n\n")[1].strip() in part("docs/study.md")
    name = "asymmetry_and_quality_digits.svg"
    assert (tmp_path / name).read_bytes() == (STUDY / name).read_bytes()
