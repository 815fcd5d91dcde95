from __future__ import annotations

import msgspec
import pytest

from ferryman.runtime.contracts.measurement import INT64_MAX, Memory, ProfileSpec
from ferryman.runtime.contracts.record import decode


@pytest.mark.parametrize("digits", ["-1", str(INT64_MAX + 1), "1" + "0" * 5000], ids=["-1", "2**63", "10**5000"])
def test_a_count_that_no_reader_could_compute_with_is_refused(digits):
    """A number of thousands of digits is valid JSON, and costs whoever prints it seconds."""
    record = {"rss_bytes": 1, "pss_bytes": 1, "uss_bytes": 1, "peak_rss_bytes": "VALUE"}
    data = msgspec.json.encode(record).replace(b'"VALUE"', digits.encode())
    with pytest.raises(ValueError, match="peak_rss_bytes"):
        decode(data, Memory)


def test_runs_beyond_64_bits_are_refused():
    with pytest.raises(ValueError, match="runs"):
        decode(b'{"runs": %d}' % (INT64_MAX + 1), ProfileSpec)
