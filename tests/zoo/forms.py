"""Which form of which network runs where: every cell is proven on the real interpreter, or refused with a reason.

python -m tests.zoo.forms            writes docs/forms.md
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from ferryman.converter.api import convert
from ferryman.converter.backends import BACKENDS
from ferryman.runtime.contracts.errors import FerrymanError
from ferryman.runtime.contracts.manifest import RuntimeName
from ferryman.runtime.session import INTERPRETERS
from tests.support.interpreters import ROOT
from tests.zoo import models

NETWORKS = ("resnet20", "mobilenet_v2", "decoder", "lstm", "sentence_encoder")
FORMS = (
    *("fp32", "int8", "int8-dynamic", "4bit", "4bit-channel", "4bit-asym", "4bit-gptq", "2bit"),
    *("mixed-4.5b", "binary"),
)
_REASON_CHARS = 160
_HEAD = """# Forms, networks, interpreters

Made by `python -m tests.zoo.forms`: small networks of the zoo (random weights, seeded), converted and run on the real
interpreters of one machine. A number is the SQNR in dB of the worst output to eager in float32 over the verification's
input sets; a network of random weights says how faithful a form is, not how accurate. What is refused has its reason
below. An artifact of a quantized form also equals the rounded program itself, or it would be refused.
"""


def cells(network: str, form: str) -> Iterator[tuple[str, str]]:
    """Interpreter -> what became of it there."""
    factory = getattr(models, network)
    module, inputs = factory()[:2]
    for runtime, names in INTERPRETERS.items():
        found = _convert(module, inputs, form, runtime, ())
        for name in names:
            yield (
                name,
                (found if isinstance(found, str) else found.get(name)) or _alone(module, inputs, form, runtime, name),
            )


def _alone(module: object, inputs: object, form: str, runtime: RuntimeName, name: str) -> str:
    found = _convert(module, inputs, form, runtime, (name,))
    return found if isinstance(found, str) else found[name]


def _convert(
    module: object, inputs: object, form: str, runtime: RuntimeName, only: tuple[str, ...]
) -> dict[str, str] | str:
    """Interpreter -> SQNR; text: refused before any interpreter was asked. Empty where one of several refused."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = convert(
                module, inputs, to=[runtime], form=form, interpreters=only, output=folder, name="cell", sqnr_min_db=5.0
            )
        except FerrymanError as error:
            several = not only and len(INTERPRETERS[runtime]) > 1 and type(error).__name__ == "ParityError"
            return {} if several else f"refused: {error}"
    return {proof.interpreter: f"{proof.sqnr_db:.1f}" for proof in made.manifest.variants[0].verified}


def document(found: dict[tuple[str, str, str], str]) -> str:
    """The page."""
    names = [name for runtime in BACKENDS for name in INTERPRETERS[runtime]]
    reasons: dict[str, int] = {}
    lines = [_HEAD, "| network | form | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for network in NETWORKS:
        for form in FORMS:
            row = []
            for name in names:
                cell = found[network, form, name]
                if cell.startswith("refused: "):
                    number = reasons.setdefault(" ".join(cell.split())[:_REASON_CHARS], len(reasons) + 1)
                    cell = f"refused ({number})"
                row.append(cell)
            lines.append(f"| {network} | {form} | " + " | ".join(row) + " |")
    lines += ["", *(f"{number}. {reason.removeprefix('refused: ')}" for reason, number in reasons.items()), ""]
    return "\n".join(lines)


def main() -> None:
    """Fill every cell and write the page."""
    found = {}
    for network in NETWORKS:
        for form in FORMS:
            for name, cell in cells(network, form):
                found[network, form, name] = cell
                click.echo(f"{network} {form} {name}: {cell}", err=True)
    path = Path(ROOT) / "docs" / "forms.md"
    path.write_text(document(found))
    click.echo(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
