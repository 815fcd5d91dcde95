"""Numbers of bytes as people write them."""

from __future__ import annotations

import re

from ferryman.runtime.contracts.errors import CallerError

_BYTES = {"": 1, "kB": 1000, "MB": 10**6, "GB": 10**9}


def parse_size(value: int | str) -> int:
    """Bytes, or a text with a unit: `500kB`, `5MB`.

    Raises:
        CallerError: it is something else.
    """
    text = str(value).strip() if isinstance(value, int | str) else ""
    found = re.fullmatch(r"(\d{1,12})(kB|MB|GB|)", text, re.ASCII)
    if found is None or not int(found[1]):
        raise CallerError(f"{value!r} is not a size, such as 500000, 500kB or 5MB")
    return int(found[1]) * _BYTES[found[2]]
