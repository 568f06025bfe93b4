"""Folders of packages are found without importing them."""

import subprocess
import sys

import pytest
import yaml

from qcsbm.runtime import packages


def test_the_folder_is_where_the_package_is():
    assert (packages.folder("yaml") / "__init__.py").samefile(yaml.__file__)


def test_the_package_is_not_imported():
    code = (
        "import sys; from qcsbm.runtime import packages; packages.folder('sklearn'); "
        "assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(ModuleNotFoundError, match="'no_such_package'"):
        packages.folder("no_such_package")
