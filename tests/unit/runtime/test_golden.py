from __future__ import annotations

import pytest

from ferryman.runtime.golden import _at_least


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
