"""Chance is the same in every run: what fails by chance fails where it was written, and not once in a hundred runs.

`--hypothesis-profile explore` draws other examples.
"""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("same", settings.get_profile("explore"), derandomize=True)
settings.load_profile("same")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before the test's fixtures, those of its module as well."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # for whoever draws from it
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)
