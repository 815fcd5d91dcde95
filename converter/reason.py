"""What a toolchain's error says, without its traceback."""

from __future__ import annotations

_LINES_MAX = 4
_CHARS_MAX = 700
_TRACEBACK = "Traceback (most recent call last)"
_NODE = "While executing %"
_BARE = (AssertionError, AttributeError, IndexError, KeyError, TypeError, NotImplementedError)
"""Their text means little without their name."""


def reason(error: BaseException) -> str:
    """The first paragraph of the message, and the operator if torch names one; the whole text stays on the error."""
    lines = [line.rstrip() for line in str(error).strip().splitlines()]
    paragraph: list[str] = []
    for line in lines:
        if paragraph and not line and not paragraph[-1].endswith(":"):
            break
        if line:
            paragraph.append(line)
    if any(_TRACEBACK in line for line in paragraph):
        paragraph = [line for line in lines if line][-1:]
    node = [line.partition(" : ")[0] for line in lines if line.startswith(_NODE) and line not in paragraph]
    said = "\n".join(paragraph[:_LINES_MAX])[:_CHARS_MAX]
    if not said or isinstance(error, _BARE):
        said = f"{type(error).__name__}: {said}".rstrip(": ")
    return f"{said} ({node[0][0].lower()}{node[0][1:]})" if node else said
