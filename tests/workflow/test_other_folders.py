"""The workflow from outside its own folder: elsewhere, as a module, from a repository, deployed."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, snakemake
from packaging.requirements import Requirement
from test_extending import BLOCK

from qcsbm.experiment import config
from qcsbm.runtime import packages

PAGE = (ROOT / "docs/workflow.md").read_text()
# Where Snakemake looks for clones, below the folder of caches.
CLONES = "snakemake/snakemake/source-cache/snakemake-git-cache"
DATA = "results/ci/data/digits/data.json"
# As snakedeploy 0.17.1 writes it.
DEPLOYED = """\
from snakemake.utils import min_version


min_version("6.10.0")


configfile: "config/config.yaml"


# declare https://github.com/qcsbm/qcsbm as a module
module qcsbm:
    snakefile: 
        github("qcsbm/qcsbm", path="workflow/Snakefile", tag="v0.1.0")
    config:
        config


# use all rules from https://github.com/qcsbm/qcsbm
use rule * from qcsbm
"""


def git(folder, *words):
    command = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e", *words]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A repository of the workflow as it is here, with the tag v0.1.0."""
    folder = tmp_path_factory.mktemp("clone") / "qcsbm"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("qcsbm", "workflow", "config", "profiles"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(ROOT / name, folder)
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "m"], ["tag", "v0.1.0"]):
        git(folder, *words)
    return folder


@pytest.fixture
def cached(clone, tmp_path, monkeypatch):
    """As if Snakemake had cloned it from GitHub."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "cache" / CLONES / "github.com/qcsbm/qcsbm"
    subprocess.run(["git", "clone", "-q", "--bare", clone, place], check=True)


def deploy(clone, folder):
    """What `snakedeploy deploy-workflow` makes."""
    for name in ("config", "profiles"):
        shutil.copytree(clone / name, folder / name)
    (folder / "workflow").mkdir()
    (folder / "workflow/Snakefile").write_text(DEPLOYED)


def run(words, folder, snakefile):
    """Snakemake with ``words``, in ``folder``, whose Snakefile it is unless they name another."""
    result = snakemake("--snakefile", snakefile, *words, cwd=folder)
    assert result.returncode == 0, (words, result.stderr[-3000:])
    return result.stdout + result.stderr


@pytest.mark.slow
def test_every_block_of_the_page_works(clone, cached, tmp_path):
    """Each way runs a job, in a folder with nothing but what the page puts there."""
    folder = tmp_path / "project"
    folder.mkdir()
    ways, snakefile = [], None
    for name, _, text in BLOCK.findall(PAGE):
        text = text.replace("/path/to/qcsbm", str(clone))
        if name:
            snakefile = folder / name
            snakefile.write_text(text)
            continue
        for line in text.splitlines():
            command, *words = re.sub(r"'([^']*)'", r"\1", line).split()
            if command == "snakemake":
                output = run(words, folder, snakefile)
                ways += ["steps (100%) done" in output]
            elif command == "snakedeploy":
                deploy(clone, folder / words[2])
            elif command == "cd":
                folder = folder / words[0]
                snakefile = folder / "workflow/Snakefile"
            else:
                subprocess.run([command, *words], cwd=folder, check=True)
    assert ways == [True, True, True, True, False, True, True]
    for place in ("", "elsewhere", "benchmark", "project"):
        found = sorted((tmp_path / "project" / place).glob("results/**/digits/data.json"))
        assert found and json.loads(found[0].read_text())["classes"] == 10
    assert not list(clone.glob("results")) and not list(clone.glob(".snakemake"))


def refusal(*words, cwd):
    """The sentence with which Snakemake ends."""
    result = snakemake("-n", *words, cwd=cwd)
    said = " ".join((result.stdout + result.stderr).split())
    assert result.returncode == 1 and "Traceback" not in said, said
    return said


def test_a_deployed_experiment_is_not_mixed_with_another_one(clone, cached, tmp_path):
    """Quick would be trained for the steps of ci, and be called by one of their names."""
    folder = tmp_path / "deployed"
    folder.mkdir()
    deploy(clone, folder)
    words = ["--snakefile", folder / "workflow/Snakefile", "--configfile", "config/ci.yaml"]
    found = f"{folder}/config/ci.yaml, config/config.yaml"
    said = refusal(*words, cwd=folder)
    assert f"experiment file: found {found}, expected one, as Snakemake would mix them" in said


def test_a_part_of_a_configuration_comes_from_the_files_that_have_it(tmp_path):
    (tmp_path / "mine.yaml").write_text("qcsbm: {tier: ci}\nother: 1\n")
    (tmp_path / "more.yaml").write_text("other: 2\n")
    (tmp_path / "mixed.yaml").write_text("qcsbm: {defaults: {steps: 5}}\n")
    files = [tmp_path / name for name in ("mine.yaml", "more.yaml", "mixed.yaml")]
    experiment = {"tier": "ci"}
    whole = {"other": 2, "list": [1], "qcsbm": experiment}
    assert config.origins(experiment, whole, files) == [files[0], files[2]]
    assert config.origins(whole, whole, files[:2]) == files[:2]
    assert config.origins(dict(experiment), whole, files) == []
    # Named by the command and by the Snakefile, a file is still one.
    (tmp_path / "link.yaml").symlink_to("mine.yaml")
    assert len(config.origins(whole, whole, [tmp_path / "link.yaml", files[0]])) == 1


def test_a_module_finds_what_its_experiment_names_whatever_its_prefix(tmp_path, monkeypatch):
    """Imported checkpoints lie where they were said to; what was prepared is known by its prefix,
    and stays where the raw data are gone."""
    document = yaml.safe_load((ROOT / "config/ci.yaml").read_text())
    digits = document["datasets"]["digits"]
    digits["data"] = {"source": "arrays", "name": "gone", "layout": "nhw", "labels": True}
    document["datasets"] = {"gone": digits}
    document["methods"] = {"u": document["methods"]["u"] | {"init_from": {"step": 20}}}
    document["methods"]["u"]["init_from"]["checkpoint"] = "u.safetensors"
    document["tables"] = {}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"qcsbm": document}))
    (tmp_path / "u.safetensors").write_bytes(b"")
    (tmp_path / "Snakefile").write_text(
        'configfile: "mine.yaml"\n'
        f'module qcsbm:\n    snakefile: "{ROOT}/workflow/Snakefile"\n'
        '    config: config["qcsbm"]\n    prefix: "there/"\n'
        "use rule * from qcsbm as qcsbm_*\n"
    )
    monkeypatch.setenv("QCSBM_DATA", str(tmp_path / "nowhere"))
    prepared = tmp_path / "there/results/ci/data/gone"
    prepared.mkdir(parents=True)
    facts = {"files": 4, "bytes": 5, "sha256": "0" * 64}
    (prepared / "data.json").write_text(json.dumps({"raw": facts}))
    words = ["-n", "-p", "--forceall", "there/results/ci/runs/gone/u/seed0/step60.safetensors"]
    output = run(words, tmp_path, tmp_path / "Snakefile")
    assert "gone: found no files in" in output
    assert facts["sha256"] in output
    assert re.search(r"input: .*there/results/ci/data/gone/train.npy.*, u.safetensors\n", output)
    assert "--init u.safetensors" in output
    assert "there/there" not in output


# What Snakemake asks conda for.
CONDA = {"conda_version": "25.1.0", "channels": [], "platform": "linux-64"}
CONDA |= {"get": {"channel_priority": "strict"}}
CONDA |= dict.fromkeys(("conda_prefix", "root_prefix", "default_prefix"), "/nowhere")
WITHOUT = """
import sys
sys.modules[{module!r}] = None
sys.argv[0] = "snakemake"
from snakemake.cli import main
main()
"""


@pytest.mark.parametrize(
    "module, sentence",
    [
        ("torch", "found no torch, expected what jobs need"),
        ("qcsbm", "found no package qcsbm, expected one"),
    ],
)
def test_a_dry_run_says_what_jobs_would_not_find(module, sentence, tmp_path):
    command = [sys.executable, "-P", "-c", WITHOUT.format(module=module), "-n"]
    command += ["--snakefile", ROOT / "workflow/Snakefile"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    said = " ".join((result.stdout + result.stderr).split())
    assert result.returncode == 1 and f"{sys.executable}: {sentence}" in said
    assert "Traceback" not in said


def test_what_jobs_need_is_what_the_package_depends_on(monkeypatch):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["workflow"]]
    for requirement in map(Requirement, listed):
        if requirement.name == "qcsbm":
            for extra in requirement.extras:
                listed += project["optional-dependencies"][extra]
    names = {re.sub(r"[-_.]+", "-", Requirement(text).name).lower() for text in listed}
    distributions = packages_distributions()
    found = {
        re.sub(r"[-_.]+", "-", name).lower()
        for module in packages.MODULES
        for name in distributions[module]
    }
    assert found >= names - {"snakemake", "qcsbm"} and not packages.missing()
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert packages.missing() == ["scipy"]
    monkeypatch.setattr(sys, "executable", "/gone/python3")
    assert packages.missing() == ["python", "scipy"]


def test_other_code_than_that_of_the_commit_is_refused(clone, tmp_path):
    """The package that is installed here cannot run the rules of another one."""
    shutil.copytree(clone, tmp_path / "edited", symlinks=True)
    stage = tmp_path / "edited/qcsbm/stages/prepare.py"
    stage.write_text(stage.read_text() + "\n")
    git(tmp_path / "edited", "commit", "-qam", "edited")
    (tmp_path / "Snakefile").write_text(
        f'module qcsbm:\n    snakefile: "git+file://{tmp_path}/edited/workflow/Snakefile@HEAD"\n'
        "    config: {}\n"
        "use rule * from qcsbm as qcsbm_*\n"
    )
    said = refusal("--snakefile", tmp_path / "Snakefile", cwd=tmp_path)
    assert "found other code than that of git+file://" in said


def test_no_job_imports_from_the_folder_that_it_runs_in():
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        assert re.findall(r"python -m", path.read_text()) == [], path


def test_two_packages_are_not_run_together(clone, tmp_path):
    """A process has one package of a name, and the jobs of both modules would be planned by it."""
    modules = {"ours": ROOT, "theirs": clone}
    text = 'configfile: "ci.yaml"\n'
    for name, folder in modules.items():
        text += f'module {name}:\n    snakefile: "{folder}/workflow/Snakefile"\n'
        text += f"    config: config\nuse rule * from {name} as {name}_*\n"
    (tmp_path / "Snakefile").write_text(text)
    shutil.copy(ROOT / "config/ci.yaml", tmp_path)
    said = refusal("--snakefile", tmp_path / "Snakefile", cwd=tmp_path)
    assert f"{clone}/qcsbm: found that {ROOT}/qcsbm was imported before, expected one" in said


def test_environments_that_are_deployed_get_the_installed_package_alone(
    clone, tmp_path, monkeypatch
):
    """As jobs have other packages there, none of this environment may come along."""
    conda = tmp_path / "bin/conda"
    conda.parent.mkdir()
    conda.write_text("#!/bin/sh\necho '" + json.dumps(CONDA) + "'\n")
    conda.chmod(0o755)
    monkeypatch.setenv("PATH", str(conda.parent), prepend=os.pathsep)
    site = tmp_path / "site"
    shutil.copytree(clone / "qcsbm", site / "qcsbm")
    (tmp_path / "Snakefile").write_text(
        'configfile: "ci.yaml"\n'
        "import os, sys, sysconfig\n"
        f"sys.path.insert(0, {str(site)!r})\n"
        f"sysconfig.get_path = lambda name: {str(site)!r}\n"
        f"module qcsbm:\n    snakefile: gitfile({str(clone)!r}, path='workflow/Snakefile', "
        "tag='v0.1.0')\n    config: config\n"
        "use rule * from qcsbm as qcsbm_*\n"
        "print('PYTHONPATH', os.environ['PYTHONPATH'])\n"
    )
    shutil.copy(ROOT / "config/ci.yaml", tmp_path)
    for more, expected in ([], []), (["--software-deployment-method", "conda"], ["qcsbm"]):
        output = run(["-n", DATA, *more], tmp_path, tmp_path / "Snakefile")
        first = re.search("^PYTHONPATH (.*)$", output, re.MULTILINE)[1].split(os.pathsep)[0]
        found = [path.name for path in Path(first).iterdir()] if "qcsbm" in first else []
        assert found == expected
    assert os.path.samefile(Path(first) / "qcsbm", site / "qcsbm")
