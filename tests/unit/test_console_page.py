"""Reading a page of commands, and telling whether what is said is what the page shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.console_page import Command, File, difference, read_page
from tests.support.first_steps import ON_DEVICE, ON_HOST
from tests.support.interpreters import ROOT

PAGE = """\
# A page

```console
$ ferryman a \\
      --b
one
...
pi$ sudo c
$ d
```

```python
# e.py
e = 1
```
"""


def test_each_block_becomes_what_is_to_be_done(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    assert read_page(tmp_path / "page.md") == [
        Command(4, False, "ferryman a \\\n      --b", ("one", "...")),
        Command(8, True, "sudo c", ()),
        Command(9, False, "d", ()),
        File(13, "e.py", "# e.py\ne = 1\n"),
    ]


@pytest.mark.parametrize(
    "block", ["```\n$ a\n```", "```sh\na\n```", "```console\na\n```", "```python\na = 1\n```", "```console\n$ a\n"]
)
def test_a_block_that_nobody_would_run_is_an_error(tmp_path, block):
    (tmp_path / "page.md").write_text(f"# A page\n\n{block}\n")
    with pytest.raises(ValueError, match=r"page\.md"):
        read_page(tmp_path / "page.md")


def test_what_is_said_must_be_what_is_shown():
    shown = ("wrote ...", "...", "ports: 1 2")
    assert not difference(shown, "wrote it\nports: 1 2\n")
    assert not difference(shown, "wrote it\nand more\nand more\nports: 1 2\n")
    assert "ports: 1 2" in difference(shown, "wrote it\nports: 1 3\n")
    assert "wrote ..." in difference(shown, "ports: 1 2\n")
    assert "the end" in difference(shown, "wrote it\nports: 1 2\nError: no\n")
    assert difference((), "anything\n")
    assert not difference((), "")


@given(st.lists(st.text(st.characters(categories=("L", "N", "P")), max_size=8), max_size=6), st.data())
def test_what_is_left_out_stands_for_anything(lines, data):
    kept = data.draw(st.lists(st.booleans(), min_size=len(lines), max_size=len(lines)))
    shown = tuple(line if keep else "..." for line, keep in zip(lines, kept, strict=True))
    assert not difference(shown, "".join(f"{line}\n" for line in lines))


def test_the_page_has_no_command_that_its_test_does_not_know():
    steps = read_page(ROOT / "docs" / "getting-started-pi.md")
    words = {(step.on_device, step.typed.split()[0]) for step in steps if isinstance(step, Command)}
    assert words == {(False, word) for word in ON_HOST} | {(True, word) for word in ON_DEVICE}
