"""What a change of the configuration reruns: what depends on it, and nothing else."""

import pytest
import yaml
from conftest import ROOT, snakemake
from test_workflow import jobs

from qcsbm.runtime import provenance

# Jobs of seconds that gather numbers and draw: they may run after any change.
SUMMARIES = {"table", "gather_records", "cost", "claims", "figures", "all", "total"}


def measured(n, *stages):
    """The jobs of ``n`` runs through ``stages``, gathering included."""
    counts = dict.fromkeys(stages, n)
    gathered = {"sample": "gather_samples", "likelihood": "gather_likelihood"}
    gathered["asymmetry"] = "gather_asymmetry"
    return counts | {gathered[stage]: n for stage in stages if stage in gathered}


SAMPLES = ("sample", "sample_features", "quality")
EVERYTHING = (*SAMPLES, "likelihood", "asymmetry")
EDITS = {
    "a label": ("methods.c.label", "Conservative", {}),
    "the rows of a table": ("tables.table3.methods", ["u", "c"], {}),
    "the two-dimensional examples": ("toy.steps", 50, {}),
    "a tolerance of the likelihood": ("defaults.likelihood.rtol", 0.02, measured(8, "likelihood")),
    "steps of the sampler": ("defaults.samplers.pc.steps", 11, measured(8, *SAMPLES)),
    "neighbours": ("datasets.digits.quality.neighbours", 4, {"quality": 4}),
    "levels of one dataset": (
        "datasets.patches.asymmetry.noise_levels",
        5,
        measured(4, "asymmetry"),
    ),
    "another seed": ("seeds", [0, 1], {"train": 10} | measured(8, *EVERYTHING)),
    "the weight of one regulariser": (
        "methods.qc.regulariser.weight",
        0.1,
        {"train": 2} | measured(2, *EVERYTHING),
    ),
    "a learning rate": ("defaults.training.lr", 0.002, {"train": 10} | measured(8, *EVERYTHING)),
    "steps of one method": ("methods.c.steps", 70, {"train": 2} | measured(2, *EVERYTHING)),
    "the classifier": (
        "datasets.digits.classifier.epochs",
        6,
        {"classifier": 1, "reference_features": 1, "sample_features": 4, "quality": 4},
    ),
    "data": (
        "datasets.digits.data.test",
        300,
        {"prepare": 1, "classifier": 1, "reference_features": 1, "train": 5}
        | measured(4, *EVERYTHING),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_reruns_what_depends_on_it(ci, edit, tmp_path):
    path, value, expected = EDITS[edit]
    document = yaml.safe_load((ROOT / "config/ci.yaml").read_text())
    *parents, last = path.split(".")
    place = document
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    (tmp_path / "edited.yaml").write_text(yaml.safe_dump(document))
    options = ["-n", "--configfile", tmp_path / "edited.yaml"]
    output = snakemake("all", *options, cwd=ci.parent.parent).stdout
    counts = {} if "Nothing to be done" in output else jobs(output)
    assert {rule: n for rule, n in counts.items() if rule not in SUMMARIES} == expected


@pytest.mark.slow
def test_cores_and_shards_leave_the_bytes_as_they_are(ci, tmp_path):
    run = "results/ci/runs/digits/qc/seed0"
    targets = [f"{run}/{name}.json" for name in ("pc/quality", "likelihood", "asymmetry")]
    options = ["--cores", "1", "--set-scatter", "shards=2", "--configfile", ROOT / "config/ci.yaml"]
    result = snakemake(*targets, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    names = [
        "step60.safetensors",
        "step60.csv",
        "pc/samples.npy",
        "likelihood.npy",
        "asymmetry.csv",
    ]
    for name in names:
        ours, theirs = tmp_path / run / name, ci.parent.parent / run / name
        assert ours.read_bytes() == theirs.read_bytes(), name
    for name in ("step60", "pc/sample", "pc/quality", "likelihood", "asymmetry"):
        ours, theirs = (
            provenance.read_record(folder / run / f"{name}.json")
            for folder in (tmp_path, ci.parent.parent)
        )
        for key in ours.keys() - set(provenance.VARYING):
            assert ours[key] == theirs[key], (name, key)
