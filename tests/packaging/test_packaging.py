"""What is published: the archives have what they should, and the wheel works by itself."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import BytesParser
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT

import qcsbm

pytestmark = pytest.mark.slow

NOT_OURS = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "results")
PACKAGE = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "qcsbm").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}


def run(*command, folder):
    """What ``command`` prints in ``folder``, where nothing of this checkout is to be found."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source archive of this checkout, and the wheel that is made of it, as pip does."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, folder / "checkout", ignore=NOT_OURS)
    build = "from setuptools import build_meta; build_meta.build_sdist('..')"
    run(sys.executable, "-c", build, folder=folder / "checkout")
    (sdist,) = folder.glob("*.tar.gz")
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, sdist, folder=folder)
    (wheel,) = folder.glob("*.whl")
    return SimpleNamespace(sdist=sdist, wheel=wheel)


def test_the_source_archive_has_the_package_and_what_it_is_built_from(built):
    with tarfile.open(built.sdist) as archive:
        paths = [m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()]
    files = {path for path in paths if not path.startswith("qcsbm.egg-info/")}
    made = {"PKG-INFO", "setup.cfg"}
    sources = {"pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CITATION.cff"}
    assert files == PACKAGE | sources | made


def test_the_wheel_has_every_file_of_the_package_and_its_metadata_alone(built):
    metadata = f"qcsbm-{qcsbm.__version__}.dist-info/"
    with zipfile.ZipFile(built.wheel) as archive:
        files = set(archive.namelist())
        facts = BytesParser().parsebytes(archive.read(f"{metadata}METADATA"))
        licence = archive.read(f"{metadata}licenses/LICENSE").decode()
    assert {name for name in files if not name.startswith(metadata)} == PACKAGE
    assert {"qcsbm/py.typed", "qcsbm/paper/table2.csv"} < PACKAGE
    assert (facts["Version"], facts["License-Expression"]) == (qcsbm.__version__, "MIT")
    assert licence == (ROOT / "LICENSE").read_text()


def test_the_installed_wheel_audits_a_field_in_another_folder(built, tmp_path):
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv/bin/python"
    options = ("--quiet", "--no-index", "--no-deps", "--no-compile", built.wheel)
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, folder=tmp_path)
    # Dependencies are those of this environment: a path alone brings no package that is editable.
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    folder = tmp_path / "user"
    folder.mkdir()
    shutil.copy(ROOT / "tests/packaging/outside.py", folder)
    *_, found = run(python, "outside.py", folder=folder).splitlines()
    assert found == f"{qcsbm.__version__} {site / 'qcsbm/__init__.py'}"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == qcsbm.__version__
