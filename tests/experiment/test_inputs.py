"""Which files the jobs of a workflow read, and what their commands say: one dry run, seed by seed.

How many jobs there are tells nothing of what they are made from. No seed here is 0, methods differ
in their reference and extractor, and some checkpoints are imported.
"""

import json
import re
import shlex
from dataclasses import dataclass

import pytest
import yaml
from conftest import snakemake

from qcsbm.experiment import config, specification

DOCUMENT = """
tier: tiny
seeds: [1, 4]
defaults:
  steps: 60
  sde: {type: ve, sigma_min: 0.01, sigma_max: 5.0}
  network: {type: ncsnpp, nf: 8, ch_mult: [1, 2], num_res_blocks: 1, attn_resolutions: []}
  training: {batch_size: 16}
  samplers:
    pc: {type: pc, steps: 10, snr: 0.16, batch_size: 32}
    heun35: {type: heun, steps: 18, batch_size: 32}
  quality: {samples: 64, extractor: classifier}
  likelihood: {samples: 16, rtol: 1e-2, atol: 1e-3, batch_size: 16}
  asymmetry: {estimator: exact, noise_levels: 4, samples: 8, batch_size: 8}
datasets:
  digits:
    label: Digits
    data: {source: digits}
    classifier: {epochs: 5}
  patches:
    label: Patches
    data: {source: patches, size: 8, train: 512, test: 64}
    seeds: [6]
    quality: {extractor: efficientnet_lite0, statistics: published/patches.npz}
methods:
  u: {label: U, parameterisation: score, checkpoints: [20, 40]}
  qc:
    label: QC
    parameterisation: score
    init_from: {method: u, step: 40}
    regulariser: {weight: 1e-2, estimator: trace}
    quality: {reference: test}
    circulation: {triangles: 3}
  given:
    label: Given
    parameterisation: score
    init_from: {checkpoint: published/u.safetensors, step: 60}
  tuned:
    label: Tuned
    parameterisation: score
    init_from: {checkpoint: published/u.safetensors, step: 50}
tables:
  table2: {methods: [u, qc]}
  table3: {methods: [qc, given], sampler: pc}
  table4: {methods: [tuned], sampler: heun35}
comparisons: {all: {pairs: [[qc, u]], metrics: [nll]}}
toy: {points: 2000, steps: 40, batch_size: 64, seeds: [2, 5]}
"""
EXPERIMENT = config.load(yaml.safe_load(DOCUMENT), "tiny.yaml")
ROOT = "results/tiny"
TRAINED = {"u": (20, 40, 60), "qc": (60,), "tuned": (60,)}
RUNS = [
    (dataset, method, seed)
    for dataset, seeds in (("digits", (1, 4)), ("patches", (6,)))
    for method in ("u", "qc", "given", "tuned")
    for seed in seeds
]
SAMPLERS = ("pc", "heun35")


@dataclass
class Job:
    rule: str
    inputs: list[str]
    outputs: list[str]
    options: dict[str, list[str]]  # of the command line, by name

    @property
    def spec(self):
        return json.loads(self.options["spec"][0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the workflow runs, with files from outside."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "tiny.yaml").write_text(DOCUMENT)
    (folder / "published").mkdir()
    for name in ("u.safetensors", "patches.npz"):
        (folder / "published" / name).write_text(name)
    return folder


@pytest.fixture(autouse=True)
def there(folder, monkeypatch):
    """Specifications hold checksums of files from outside."""
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def jobs(folder):
    """All jobs of the workflow, by each of their outputs."""
    options = ["-n", "--printshellcmds", "--cores", "2", "--configfile", "tiny.yaml"]
    result = snakemake("all", "toy", "--set-scatter", "shards=2", *options, cwd=folder)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    found = {}
    for block in re.split(r"^(?=(?:local)?rule )", result.stdout, flags=re.MULTILINE)[1:]:
        fields = dict(re.findall(r"^    (input|output): (.*)$", block, re.MULTILINE))
        files = {name: text.split(", ") for name, text in fields.items()}
        command = re.search(r"^Shell command: (.*)$", block, re.MULTILINE)
        job = Job(
            re.match(r"(?:local)?rule (\w+)", block)[1],
            files.get("input", []),
            files.get("output", []),
            _options(command[1] if command else ""),
        )
        found |= dict.fromkeys(job.outputs, job)
    return found


def _options(command):
    """The values of every option of a shell ``command``."""
    options, values = {}, []
    for word in shlex.split(command.partition(" 2> ")[0]):
        if word.startswith("--"):
            values = options.setdefault(word[2:], [])
        else:
            values.append(word)
    return options


def run_folder(dataset, method, seed):
    return f"{ROOT}/runs/{dataset}/{method}/seed{seed}"


def checkpoint(dataset, method, seed):
    """The last one of a run."""
    if method == "given":
        return "published/u.safetensors"
    return f"{run_folder(dataset, method, seed)}/step60.safetensors"


def shards(stem, suffix):
    return [f"{stem}.{i}-of-2.{suffix}" for i in (1, 2)]


def as_json(stage, *names):
    return getattr(specification, stage)(EXPERIMENT, *names).document()


def assert_uses(job, spec, **options):
    """The command of ``job`` has this specification and these files, which are all inputs."""
    assert job.spec == spec
    for name, files in options.items():
        files = [files] if isinstance(files, str) else files
        assert job.options.get(name, []) == files, (job.outputs, name)
        assert set(files) <= set(job.inputs), (job.outputs, name)


def assert_depends_on_data(job, dataset, *arrays):
    """A change of the prepared arrays runs ``job`` again."""
    folder = f"{ROOT}/data/{dataset}"
    assert job.options["data"] == [folder]
    files = {f"{folder}/data.json", *(f"{folder}/{array}.npy" for array in arrays)}
    assert files <= set(job.inputs)


@pytest.mark.parametrize("run", RUNS)
def test_a_training_starts_from_its_own_seed_or_from_the_imported_file(jobs, run):
    dataset, method, seed = run
    for step in TRAINED.get(method, ()):
        init = {
            ("u", 20): [],
            ("u", 40): [f"{run_folder(*run)}/step20.safetensors"],
            ("u", 60): [f"{run_folder(*run)}/step40.safetensors"],
            ("qc", 60): [f"{run_folder(dataset, 'u', seed)}/step40.safetensors"],
            ("tuned", 60): ["published/u.safetensors"],
        }[method, step]
        job = jobs[f"{run_folder(*run)}/step{step}.safetensors"]
        assert job.rule == "train"
        assert_uses(job, as_json("train", *run, step), init=init)
        assert_depends_on_data(job, dataset, "train")
        checkpoints = [file for file in job.inputs if file.endswith(".safetensors")]
        assert checkpoints == init


@pytest.mark.parametrize("run", RUNS)
def test_a_model_is_measured_at_its_last_checkpoint(jobs, run):
    folder, last = run_folder(*run), checkpoint(*run)
    for stage in ("likelihood", "asymmetry"):
        parts = shards(f"{folder}/shards/{stage}", "npz")
        records = shards(f"{folder}/shards/{stage}", "json")
        for i, part in enumerate(parts, 1):
            assert_uses(jobs[part], as_json(stage, *run), checkpoint=last)
            assert_depends_on_data(jobs[part], run[0], "test")
            assert jobs[part].options["shard"] == [f"{i}-of-2"]
        gather = jobs[f"{folder}/{stage}.json"]
        assert_uses(gather, as_json(stage, *run), shards=parts, records=records)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("run", RUNS)
def test_samples_come_from_the_last_checkpoint_and_meet_their_reference(jobs, run, sampler):
    dataset, method, _ = run
    folder, spec = f"{run_folder(*run)}/{sampler}", as_json("sample", *run, sampler)
    parts = shards(f"{folder}/shards/samples", "npz")
    records = shards(f"{folder}/shards/samples", "json")
    for part in parts:
        assert_uses(jobs[part], spec, checkpoint=checkpoint(*run))
        assert_depends_on_data(jobs[part], dataset)
    assert_uses(jobs[f"{folder}/samples.npy"], spec, shards=parts, records=records)

    digits = dataset == "digits"
    extractor = "classifier" if digits else "efficientnet_lite0"
    weights = [f"{ROOT}/data/digits/classifier.safetensors"] if digits else []
    split = "test" if method == "qc" else "train"
    real = shards(f"{ROOT}/data/{dataset}/features/{extractor}.{split}", "npz")
    fake = shards(f"{folder}/features.{extractor}", "npz")
    images = {"real": f"{ROOT}/data/{dataset}/{split}.npy", "fake": f"{folder}/samples.npy"}
    for name, files in (("real", real), ("fake", fake)):
        for file in files:
            job = jobs[file]
            assert_uses(job, as_json("features", extractor), images=images[name], weights=weights)
            assert_depends_on_data(job, dataset)
    statistics = [] if digits else ["published/patches.npz"]
    assert_uses(
        jobs[f"{folder}/quality.json"],
        as_json("quality", *run, sampler),
        samples=fake,
        reference=real,
        statistics=statistics,
    )


@pytest.mark.parametrize("run", [run for run in RUNS if run[1] == "qc"])
def test_circulation_is_that_of_the_last_checkpoint(jobs, run):
    job = jobs[f"{run_folder(*run)}/circulation.json"]
    assert_uses(job, as_json("circulation", *run), checkpoint=checkpoint(*run))
    assert_depends_on_data(job, run[0], "test")
    assert job.options["levels"] == [f"{run_folder(*run)}/circulation.csv"]


def test_the_classifier_learns_from_the_prepared_data(jobs):
    job = jobs[f"{ROOT}/data/digits/classifier.safetensors"]
    assert job.spec == as_json("classifier", "digits")
    assert_depends_on_data(job, "digits", "train", "train_labels", "test", "test_labels")
    for dataset in ("digits", "patches"):
        job = jobs[f"{ROOT}/data/{dataset}/data.json"]
        assert job.spec == as_json("prepare", dataset)


def records_of(methods, *names):
    return {
        f"{run_folder(dataset, method, seed)}/{name}.json"
        for dataset, method, seed in RUNS
        if method in methods
        for name in names
    }


def test_tables_are_made_of_the_records_of_their_rows(jobs):
    for table, expected in {
        "table2": records_of(("u", "qc"), "likelihood", "asymmetry")
        | records_of(("qc",), "circulation"),
        "table3": records_of(("qc", "given"), "pc/sample", "pc/quality"),
        "table4": records_of(("tuned",), "heun35/sample", "heun35/quality"),
    }.items():
        job = jobs[f"{ROOT}/{table}.csv"]
        assert set(job.options["records"]) == expected <= set(job.inputs)
        assert job.spec == as_json("table", table)


def test_metrics_and_costs_are_made_of_all_records(jobs):
    methods = ("u", "qc", "given", "tuned")
    sampled = [f"{sampler}/{stage}" for sampler in SAMPLERS for stage in ("sample", "quality")]
    assert not any("circulation" in file for file in jobs if "/qc/" not in file)
    metrics = jobs[f"{ROOT}/metrics.csv"]
    expected = records_of(methods, "likelihood", "asymmetry", *sampled)
    expected |= records_of(("qc",), "circulation")
    assert set(metrics.options["records"]) == expected <= set(metrics.inputs)

    cost = jobs[f"{ROOT}/tables/cost.csv"]
    expected = records_of(methods, "likelihood", "pc/sample", "heun35/sample")
    for method, steps in TRAINED.items():
        expected |= records_of((method,), *(f"step{step}" for step in steps))
    assert set(cost.options["records"]) == expected <= set(cost.inputs)


def test_pictures_are_of_the_first_seed_of_their_dataset(jobs):
    for dataset, seed in (("digits", 1), ("patches", 6)):
        job = jobs[f"{ROOT}/figures/{dataset}/figure3_pc.png"]
        assert job.spec["seed"] == seed
        for sampler in SAMPLERS:
            samples = {file for file in job.inputs if file.endswith(f"{sampler}/samples.npy")}
            assert samples == {
                f"{run_folder(dataset, method, seed)}/{sampler}/samples.npy"
                for method in ("u", "qc", "given", "tuned")
            }


def test_claims_are_judged_by_the_metrics(jobs):
    job = jobs[f"{ROOT}/claims.json"]
    assert_uses(job, as_json("claims"), metrics=f"{ROOT}/metrics.csv")
    # What was compared stands beside the time of its training.
    trained = {
        f"{run_folder(*run)}/step{step}.json" for run in RUNS for step in TRAINED.get(run[1], ())
    }
    assert set(job.options["training"]) == trained <= set(job.inputs)


def test_two_dimensional_examples_have_their_seeds(jobs):
    runs = [
        (dataset, method, seed)
        for dataset in ("8-gaussian", "spirals", "checkerboard")
        for method in ("c", "u", "qc")
        for seed in (2, 5)
    ]
    for run in runs:
        dataset, method, seed = run
        job = jobs[f"{ROOT}/toy/{dataset}/{method}/seed{seed}.json"]
        assert job.spec == as_json("toy", *run)
        assert (job.spec["dataset"], job.spec["method"], job.spec["seed"]) == run
    table = jobs[f"{ROOT}/tables/toy.csv"]
    records = [f"{ROOT}/toy/{d}/{m}/seed{s}.json" for d, m, s in runs]
    assert sorted(table.options["records"]) == sorted(records)
    assert set(records) <= set(table.inputs)
    picture = jobs[f"{ROOT}/figures/toy/spirals.png"]
    fields = [f"{ROOT}/toy/spirals/{m}/seed2.npz" for m in ("c", "u", "qc")]
    assert_uses(picture, as_json("toy_figure", "spirals"), fields=fields)
    assert picture.spec["seed"] == 2
