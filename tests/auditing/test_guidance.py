"""Guidance: κ² and circulation at every weight, against closed forms and against `audit`."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT, in_process
from fields import Potential, closed_form, linear, matrix, points
from torch import nn

import qcsbm
from qcsbm.auditing.guidance_report import GuidanceReport
from qcsbm.conservativeness.estimates import PRODUCTS
from qcsbm.runtime.errors import BadInput

WEIGHTS = (-1.0, 0.0, 0.5, 1.0, 3.0, 7.5)
D = 80


def network(seed, d=D):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(d, 32), nn.Tanh(), nn.Linear(32, d))


def guided(conditional, unconditional, weight):
    return lambda x: unconditional(x) + weight * (conditional(x) - unconditional(x))


@pytest.mark.parametrize("products", PRODUCTS)
def test_linear_fields_have_their_closed_form_at_every_weight(products):
    a, b = matrix(D, 0), matrix(D, 1)
    x = points(40, D)
    report = qcsbm.audit_guidance(
        (linear(a), linear(b)), x, weights=WEIGHTS, products=products, probes=20, dtype="float64"
    )
    for found in report.levels[0].weights:
        asym, nasym = closed_form(found.weight * a + (1 - found.weight) * b)
        # All samples have the same Jacobian, so that errors are those of probes alone.
        for quantity, truth in ((found.asym, asym), (found.kappa_squared, 4 * nasym)):
            assert quantity.stderr > 0 and abs(quantity.value - truth) < 4 * quantity.stderr
        assert found.kappa_squared.value == pytest.approx(4 * found.nasym.value)
        assert found.lambda_.value == pytest.approx(found.nasym.value**0.5)
        assert found.zero_within is None and found.kappa_squared.n == 40
    passes = {"autograd": 41, "finite_differences": 63, "forward": 44}[products]
    circles = qcsbm.audit(linear(a), x, spectrum=0, products=products, probes=20, dtype="float64")
    of_one = circles.levels[0].evaluations
    # Twice those of one field, whatever the number of weights.
    assert report.levels[0].evaluations == 2 * of_one
    assert of_one > 40 * passes


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("probes", [6, "exact"])
def test_the_numbers_are_those_of_audit_at_each_weight(products, probes):
    conditional, unconditional = network(0), network(1)
    x = points(6, D)
    options = {"products": products, "probes": probes, "dtype": "float64", "batch_size": 4}
    pair = [qcsbm.Field(lambda x, t, f=f: f(x), module=f) for f in (conditional, unconditional)]
    report = qcsbm.audit_guidance(pair, x, weights=WEIGHTS, circulation=False, **options)
    conditional, unconditional = conditional.double(), unconditional.double()
    for found in report.levels[0].weights:
        function = guided(conditional, unconditional, found.weight)
        alone = qcsbm.asymmetry(function, x, **options).levels[0]
        assert found.asym.value == pytest.approx(alone.asym.value, rel=1e-5)
        assert found.kappa_squared.low == pytest.approx(alone.kappa_squared.low, rel=1e-5)
        assert found.samples.nasym == pytest.approx(alone.samples.nasym, rel=1e-5)
        # Of the same order: a weight does not choose the probes that are looked at again.
        assert 0.02 < found.floor / alone.floor < 1e4


class Mixture:
    """Scores of two Gaussians of different covariances, and of their mixture, with noise."""

    def __init__(self, d):
        self.means = torch.stack([torch.ones(d), -torch.ones(d)]).double()
        self.scales = torch.stack([torch.linspace(0.5, 2, d), torch.linspace(2, 0.5, d)]).double()

    def of_class(self, x, t):
        return -self.away(x, t)[:, 0]

    def of_all(self, x, t):
        away = self.away(x, t)
        variance = self.scales.to(x) ** 2 + t[:, None, None] ** 2
        logits = -(away**2 * variance + variance.log()).sum(2) / 2
        return -(logits.softmax(1)[..., None] * away).sum(1)

    def away(self, x, t):
        """(x − mean) / variance of both classes, (B, 2, D)."""
        variance = self.scales.to(x) ** 2 + t[:, None, None] ** 2
        return (x[:, None] - self.means.to(x)) / variance


@pytest.mark.parametrize("products", PRODUCTS)
def test_guidance_by_exact_scores_is_a_gradient_at_every_weight(products):
    mixture = Mixture(12)
    pair = tuple(
        qcsbm.Field(f, "score", qcsbm.EDM(0.02, 10)) for f in (mixture.of_class, mixture.of_all)
    )
    report = qcsbm.audit_guidance(
        pair, points(12, 12), [0.5, 2.0], WEIGHTS, products=products, probes=8, dtype="float64"
    )
    for level in report.levels:
        for found in level.weights:
            assert found.zero_within is not None
            assert found.zero_within.lambda_ < {"autograd": 1e-13}.get(products, 1e-6)
            assert not found.circulation.seen
    assert all(mean.zero_within for mean in report.means)
    assert "is a gradient at every weight" in " ".join(str(report).split())


def test_rounding_is_that_of_the_two_fields_where_they_nearly_cancel():
    # Of w = 1000 hardly anything is left but the rounding of both in float32.
    energy = Potential(D)
    almost = Potential(D)
    with torch.no_grad():
        almost.energy[0].weight.mul_(1.001)
    report = qcsbm.audit_guidance((energy, almost), points(10, D), weights=[1000.0], probes=8)
    alone = qcsbm.asymmetry(energy, points(10, D), probes=8).levels[0]
    found = report.levels[0].weights[0]
    assert found.zero_within is not None
    assert found.floor > 1e4 * alone.floor


def test_circulation_is_that_of_the_guided_score():
    conditional, unconditional = network(0, 6).double(), network(1, 6).double()
    pair = (conditional, unconditional)
    x = points(30, 6).double()
    report = qcsbm.audit_guidance(pair, x, weights=WEIGHTS)
    for found in report.levels[0].weights:
        alone = qcsbm.audit(guided(*pair, found.weight), x, spectrum=0).levels[0].circulation
        error = 3 * (found.circulation.error + alone.error)
        assert found.circulation.rms.value == pytest.approx(alone.rms.value, abs=error)
        assert found.circulation.values == pytest.approx(alone.values, abs=2 * error)
        assert found.circulation.error < 0.05 * alone.rms.value
        assert found.circulation.unit == alone.unit == "nats"


def test_quadrature_errs_little_at_every_weight_where_fields_are_curved():
    def curved(seed):
        inner = network(seed, 6).double()
        return lambda x: inner(16 * x)

    weights = (0.0, 1.0, 7.5)
    x = points(30, 6).double()
    found = qcsbm.audit_guidance((curved(0), curved(1)), x, weights=weights).levels[0].weights
    plain, conditional, strong = (one.circulation for one in found)
    assert strong.error < 0.02 * max(plain.rms.value, conditional.rms.value)


@pytest.fixture
def folder(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=4,
        num_class_embeds=5,
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "classes")
    return tmp_path / "classes"


@pytest.mark.parametrize("null_label", [None, 2])
def test_a_folder_of_diffusers_by_its_label(folder, null_label):
    x, weights = points(4, 1, 8, 8), (0.0, 2.0, 7.5)
    report = qcsbm.audit_guidance(
        folder, x, [300], weights, label=3, null_label=null_label, probes=3, circulation=False
    )
    null = 4 if null_label is None else null_label
    assert report.field.name == f"classes, class 3 guided from classes, class {null}"
    assert report.field.kind == "epsilon" and len(report.field.files) == 3
    for found in report.levels[0].weights:
        field = qcsbm.from_diffusers(folder, label=3, guidance=found.weight, null_label=null_label)
        alone = qcsbm.asymmetry(field, x, [300], probes=3).levels[0]
        # float32
        assert found.samples.nasym == pytest.approx(alone.samples.nasym, rel=1e-3)
        assert found.kappa_squared.value == pytest.approx(alone.kappa_squared.value, rel=1e-3)


def test_the_pilot_asks_for_as_many_probes_as_the_worst_weight_needs():
    # One plane of rotation at weight 1, many at weight 0.
    u, v = points(2, D)
    pair = (linear(torch.outer(u, v)), linear(matrix(D)))
    counts = [
        qcsbm.audit_guidance(pair, points(8, D), weights=w, circulation=False).protocol.probes
        for w in ([0.0], [1.0], [0.0, 1.0])
    ]
    assert counts[0] < counts[1] == counts[2]


def steps(scale):
    ratio = scale * torch.linspace(0.1, 1, 10)
    return qcsbm.Field(lambda x, t: x, "x0", qcsbm.Discrete(torch.ones(10), ratio), f"{scale:g}")


PAIR = (linear(matrix(4, 0)), linear(matrix(4, 1)))
EPSILON = qcsbm.Field(lambda x, t: x, "epsilon", qcsbm.VP(), "epsilon")
SCORE = qcsbm.Field(lambda x, t: x, "score", qcsbm.VP(), "score")
OTHER = qcsbm.Field(lambda x, t: x, "epsilon", qcsbm.VP(beta_max=10.0), "other")
IMAGES = qcsbm.Field(lambda x, t: x, "epsilon", qcsbm.VP(), "images", shape=(3, 8, 8))


@pytest.mark.parametrize(
    "model, options, sentence",
    [
        (PAIR, {"weights": []}, "expected different finite numbers"),
        (PAIR, {"weights": [1, 1]}, "expected different finite numbers"),
        (PAIR, {"weights": [float("nan")]}, "expected different finite numbers"),
        (PAIR, {"label": 3}, "label: found one with two fields"),
        (PAIR[0], {}, "expected two fields"),
        (PAIR[:1], {}, "expected two fields"),
        ((EPSILON, SCORE), {}, "score: found score under .*, expected epsilon"),
        ((EPSILON, OTHER), {}, "other: found epsilon under"),
        ((steps(1.0), steps(1.1)), {}, r"1.1: found x0 under Discrete\(10 steps\), expected x0"),
        ((EPSILON, IMAGES), {}, r"expected \(3, 8, 8\), that of images"),
        ("gone", {}, "gone: found no label, expected that of the class to guide to"),
        ("gone", {"label": 1}, "gone: found no such folder"),
    ],
)
def test_bad_input_is_one_sentence(model, options, sentence):
    with pytest.raises(BadInput, match=sentence):
        qcsbm.audit_guidance(model, points(5, 4), **options)


@pytest.fixture(scope="module")
def report():
    schedule = qcsbm.VE()

    def field(seed):
        j = matrix(6, seed)
        return lambda x, t: linear(j)(x) / schedule.std(t)[:, None] ** 2

    return qcsbm.audit_guidance(
        (field(0), field(1)), points(12, 6), [0.2, 0.5], schedule=schedule, dtype="float64"
    )


def test_means_are_over_levels(report):
    for number, mean in enumerate(report.means):
        levels = [level.weights[number] for level in report.levels]
        assert {level.weight for level in levels} == {mean.weight}
        values = [level.kappa_squared.value for level in levels]
        assert mean.kappa_squared.value == pytest.approx(np.mean(values))


def test_changes_are_paired_by_sample():
    # Half of the samples rotate fast at all weights, so that κ² varies much more than it changes.
    x = torch.linspace(1, 2, 40).repeat(2, 1).T.double() * (torch.arange(40) % 2 * 2 - 1)[:, None]
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double()

    def field(rate):
        return lambda x: x + (rate + (x[:, :1] > 0).to(x)) * (x @ turn)

    means = qcsbm.audit_guidance(
        (field(0.1), field(0.05)), x, weights=[0, 1], circulation=False
    ).means
    truth = [4 * r**2 / (1 + r**2) for r in (0.05, 0.1, 1.05, 1.1)]
    changes = truth[1] - truth[0], truth[3] - truth[2]
    change = means[1].change
    assert change.value == pytest.approx(np.mean(changes))
    assert change.stderr == pytest.approx(np.ptp(changes) / 2 / 39**0.5)
    assert change.stderr < 0.1 * means[1].kappa_squared.stderr
    assert means[0].change.value == 0


def test_json_round_trip_keeps_everything(report, tmp_path):
    report.to_json(tmp_path / "audit.json")
    assert GuidanceReport.from_json(tmp_path / "audit.json") == report
    (tmp_path / "audit.json").write_text("{}")
    with pytest.raises(BadInput, match="expected the report of an audit of guidance"):
        GuidanceReport.from_json(tmp_path / "audit.json")


def test_the_schema_in_the_documentation_is_that_of_reports():
    schema = json.dumps(GuidanceReport.model_json_schema(), indent=1, ensure_ascii=False) + "\n"
    assert (ROOT / "docs/audit-guidance.schema.json").read_text() == schema


def test_the_table_is_narrow_ascii(report):
    lines = str(report).splitlines()
    assert str(report).isascii() and max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if line.split()[:1] in (["0.0549"], ["0.707"])]
    assert [row[1] for row in rows] == ["0", "1", "2", "4", "7.5"] * (len(rows) // 5)
    assert any(line.startswith("w = 7.5") for line in lines)


@pytest.mark.slow
def test_the_figure_is_the_same_bytes_twice(report, tmp_path):
    found = []
    for number in range(2):
        report.plot(tmp_path / f"{number}.svg")
        found.append((tmp_path / f"{number}.svg").read_bytes())
    assert found[0] == found[1] and b"guidance weight" in found[0]


# The command.

MODEL = """
import torch
import qcsbm

turn = 0.1 * torch.ones(4, 4).triu(1)
turn = turn - turn.T


def guided(x, t):
    y = x.flatten(1)
    return ((y @ turn.T.to(x) - y) / (1 + qcsbm.VE().std(t)[:, None] ** 2)).view_as(x)


def plain(x, t):
    return -x / (1 + qcsbm.VE().std(t)[:, None] ** 2)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODEL)
    np.save("floats.npy", np.random.default_rng(0).random((10, 4)))
    return tmp_path


COMMAND = ("audit", "mine:guided", "--data", "floats.npy", "--schedule", "ve", "--out", "out")


def test_the_command_has_weights_as_an_axis(here, capsys):
    options = ("--unconditional", "mine:plain", "--guidance", "0", "1", "4", "--levels", "1.0")
    assert in_process(*COMMAND, *options) == 0
    assert "Audit of mine:guided guided from mine:plain" in capsys.readouterr().out
    report = GuidanceReport.from_json("out/audit.json")
    rotation = 12 * (0.2 * np.array([0, 1, 4])) ** 2
    kappa = rotation / (4 + rotation / 4)
    found = [mean.kappa_squared.value for mean in report.means]
    assert found == pytest.approx(kappa, rel=1e-4, abs=1e-9)
    names = {path.name for path in (here / "out").iterdir()}
    assert names == {"audit.json", "audit.png", "audit.svg"}


def test_the_command_takes_a_folder_and_one_weight_as_before(here, folder, monkeypatch):
    images = np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
    np.save("images.npy", images)
    command = ("audit", str(folder), "--data", "images.npy", "--out", "out", "--label", "3")
    options = ("--levels", "1.0", "--probes", "3", "--guidance")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert in_process(*command, *options, "0", "2") == 0
    several = GuidanceReport.from_json("out/audit.json")
    asked = []

    def audit(field, x, times, **settings):
        asked.append(field)
        return qcsbm.asymmetry(field, x, times, probes=3)

    monkeypatch.setattr("qcsbm.stages.audit.audit", audit)
    assert in_process(*command, *options, "2") == 0
    assert [field.name for field in asked] == ["classes, class 3, guidance 2"]
    one = qcsbm.Report.from_json("out/audit.json").mean.kappa_squared.value
    assert several.means[1].kappa_squared.value == pytest.approx(one, rel=1e-3)


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--guidance", "1", "2"], "found several weights, expected --unconditional"),
        (["--unconditional", "mine:plain"], "found no weight with --unconditional"),
        (
            ["--unconditional", "mine:plain", "--guidance", "1", "--kinds", "x0"],
            "--kinds: found some",
        ),
        (["--guidance", "1"], "mine:guided: found the setting guidance"),
    ],
)
def test_bad_arguments_are_one_sentence(here, capsys, options, sentence):
    assert in_process(*COMMAND, *options) == 2
    assert sentence in capsys.readouterr().err and not (here / "out").exists()
