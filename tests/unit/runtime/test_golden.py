from __future__ import annotations

import pytest

from ferryman.runtime.contracts.errors import PackageError
from ferryman.runtime.golden import _at_least, check_golden
from ferryman.runtime.package import open_package
from tests.support.packages import write_tiny_package


@pytest.mark.parametrize(
    ("version", "least", "enough"),
    [
        ("2.14.0", "2.14", True),
        ("2.14", "2.14.0", True),
        ("2.14", "2.14.1", False),
        ("2.9.0", "2.14", False),
        ("2.14.0rc1", "2.14", True),
        ("2.14.0+cpu", "2.14.0", True),
        ("1.5.1", "1.5.10", False),
        ("3", "2.99", True),
        ("unknown", "1", False),
    ],
)
def test_versions_compare_as_numbers(version, least, enough):
    assert _at_least(version, least) is enough


def test_golden_outputs_of_nothing_but_nan_prove_nothing(tmp_path):
    with open_package(write_tiny_package(tmp_path / "p.ferry", promised=float("nan"))) as package:
        (path,) = package.manifest.golden
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_bytes(package.read(path))
        with pytest.raises(PackageError, match="no golden output is finite"):
            check_golden(tmp_path, package.manifest)
