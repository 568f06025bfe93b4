"""The package that plans and runs the jobs, and the environment that they run in."""

import os
import sys
import sysconfig
from pathlib import Path

import git
from snakemake.exceptions import WorkflowError

# The package of the checkout that this file is in. Where Snakemake reads it from a repository,
# nothing lies beside it, and the package is an installed one, of the same commit.
here = workflow.current_basedir
beside = Path(str(here)).parents[1] / "qcsbm"
if beside.is_dir():
    sys.path.insert(0, str(beside.parent))
try:
    from qcsbm.runtime import packages, source_code
except ModuleNotFoundError:
    raise WorkflowError(
        f"{sys.executable}: found no package qcsbm, expected one, as jobs run under this "
        "interpreter: install it, see docs/workflow.md"
    ) from None
if beside.is_dir():
    if not source_code.PACKAGE.samefile(beside):
        raise WorkflowError(
            f"{beside}: found that {source_code.PACKAGE} was imported before, expected one package "
            "for all that is run together"
        )
elif workflow.is_main_process and hasattr(here, "ref"):
    hosted = getattr(here, "hosted_repo", None)
    repository = hosted.repo if hosted else git.Repo(here.repo_path)
    files = sorted(map(str, source_code.PACKAGE.rglob("*.py")))
    digests = repository.git.hash_object("--no-filters", *files).split()
    tree = repository.commit(here.ref).tree["qcsbm"]
    committed = [blob for blob in tree.traverse() if blob.path.endswith(".py")]
    if {os.path.relpath(blob.path, tree.path): blob.hexsha for blob in committed} != {
        os.path.relpath(file, source_code.PACKAGE): digest
        for file, digest in zip(files, digests, strict=True)
    }:
        raise WorkflowError(
            f"{source_code.PACKAGE}: found other code than that of {here}, expected the package of "
            "that commit, as jobs run it: install it, or use a clone"
        )

# Environments that Snakemake deploys have packages of their own.
deployed = workflow.deployment_settings and (
    workflow.deployment_settings.deployment_method
)
missing = [] if deployed else packages.missing()
if workflow.is_main_process and missing:
    raise WorkflowError(
        f"{sys.executable}: found no {', '.join(missing)}, expected what jobs need, as they run "
        "under this interpreter: install qcsbm with its extra workflow, see docs/workflow.md"
    )

# Jobs run under the interpreter that runs Snakemake, whether or not its environment is activated,
# and import the package that planned them, wherever they run and whatever is installed.
folder = source_code.PACKAGE.parent
if str(folder) in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
    # All others of that folder would come along to an environment that Snakemake deploys.
    folder = Path(".snakemake/qcsbm").absolute() if deployed else None
    if deployed and workflow.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "qcsbm").unlink(missing_ok=True)
        (folder / "qcsbm").symlink_to(source_code.PACKAGE)
environment = {
    "PATH": [os.path.dirname(sys.executable), *os.get_exec_path()],
    "PYTHONPATH": [str(folder or ""), os.environ.get("PYTHONPATH", "")],
}
os.environ.update(
    {name: os.pathsep.join(filter(None, v)) for name, v in environment.items()}
)
if workflow.is_main_process or source_code.PLANNED not in os.environ:
    os.environ.update({source_code.PLANNED: source_code.package_digest()})
