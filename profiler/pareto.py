"""Accuracy against cost: every variant of some packages, run over labelled inputs on this machine, and drawn.

Of two variants the better one is at least as accurate and costs no more; those that none is better than are the front.
"""

from __future__ import annotations

import math
import os
import secrets
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ferryman.profiler.report_words import MISSING, number
from ferryman.profiler.stats import Z_975, block_error
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record, encode
from ferryman.runtime.contracts.tensor import Array, Signature
from ferryman.runtime.golden import usable_interpreters
from ferryman.runtime.isolated import IsolatedSession
from ferryman.runtime.package import open_package

Labelled = Sequence[tuple[tuple[Array, ...], Array]]
"""Inputs of a call, and the class number of each row of its first output."""
_WARM_UP = 3
_FEWEST = 20
NOTE = (
    "95 % of: where the accuracy lies for other examples of the kind. +- %: half of the 95 % interval of the median, "
    "by one process's runs; what a new process or another load moves is not in it. `ferryman compare` measures in turn."
)
_SUFFIXES = (".png", ".svg", ".html")


class Point(Record):
    """One variant on one interpreter."""

    package: str
    form: str
    interpreter: str
    accuracy: float
    """Share of rows whose largest output is the label's."""
    size_bytes: int
    """Of the artifact."""
    latency_us: float
    """Median of a call, one thread."""
    examples: int
    latency_error: float | None = None
    """Half of the median's 95 % interval over it, by how its runs scatter; None: not known, of an earlier version."""
    accuracy_low: float | None = None
    """95 % interval of the accuracy over other examples of the kind (Wilson, 1927); None: as above."""
    accuracy_high: float | None = None


def measure(
    packages: Sequence[Path], labelled: Labelled, *, progress: Callable[[str], None] = lambda _: None
) -> list[Point]:
    """Run every variant that this machine can run over all inputs, each in a process of its own.

    Raises:
        CallerError: no inputs, labels of another number than outputs, or no variant runs here.
        PackageError: a package is damaged.
        RuntimeFault: an interpreter refuses an input.
    """
    if not labelled:
        raise CallerError("there are no labelled inputs to measure accuracy with")
    points = []
    for path in packages:
        with open_package(path) as package, tempfile.TemporaryDirectory() as folder:
            for variant in package.manifest.variants:
                artifact = Path(folder) / Path(variant.payload).name
                artifact.write_bytes(package.read(variant.payload))
                for interpreter in usable_interpreters(variant):
                    progress(f"{path.name}: {variant.called} on {interpreter}")
                    with IsolatedSession(
                        artifact, variant.runtime, interpreter=interpreter, entry=variant.entry
                    ) as session:
                        right, rows, times = _run(session, _cut(labelled, package.manifest.signature))
                    low, high = wilson(right, rows)
                    points.append(
                        Point(
                            package=package.manifest.name,
                            form=variant.called,
                            interpreter=interpreter,
                            accuracy=right / rows,
                            size_bytes=artifact.stat().st_size,
                            latency_us=float(np.median(times)) / 1e3,
                            examples=rows,
                            latency_error=block_error(times),
                            accuracy_low=low,
                            accuracy_high=high,
                        )
                    )
    if not points:
        raise CallerError("this machine has no interpreter for any variant of these packages")
    return points


def _cut(labelled: Labelled, signature: Signature) -> Labelled:
    """Batches as the model takes them, where it takes one size and they are some times as large."""
    shape = signature.inputs[0].shape
    step = shape[0] if shape and isinstance(shape[0], int) else 0
    made: list[tuple[tuple[Array, ...], Array]] = []
    for inputs, labels in labelled:
        rows = {len(one) if one.ndim else 0 for one in (*inputs, labels)}
        count = rows.pop()
        if rows or not step or count <= step or count % step:
            made.append((inputs, labels))
        else:
            made += [(tuple(one[i : i + step] for one in inputs), labels[i : i + step]) for i in range(0, count, step)]
    return made


def _run(session: IsolatedSession, labelled: Labelled) -> tuple[int, int, list[int]]:
    right = rows = 0
    times: list[int] = []
    for inputs, labels in labelled:
        output = session.run(inputs)[0]
        if not output.ndim or not output.shape[-1]:
            raise CallerError(f"the first output, of shape {list(output.shape)}, holds no classes")
        scores = output.reshape(-1, output.shape[-1])
        found = np.where(np.isfinite(scores).all(1), scores.argmax(1), -1)  # a row that is none is never right
        wanted = np.asarray(labels).reshape(-1)
        if len(found) != len(wanted):
            raise CallerError(
                f"the model answers inputs with {len(found)} rows of {output.shape[-1]} classes, and they have "
                f"{len(wanted)} class numbers; give one to each row"
            )
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < output.shape[-1]:
            raise CallerError(
                f"class numbers are {wanted.min()} to {wanted.max()}, and the model has {output.shape[-1]} classes, "
                "from 0 on"
            )
        right += int((found == wanted).sum())
        rows += len(wanted)
        times.append(session.last_run_ns)
    inputs = labelled[0][0]
    while len(times) < _WARM_UP + _FEWEST:
        session.run(inputs)
        times.append(session.last_run_ns)
    return right, rows, times[_WARM_UP:]


def wilson(right: int, rows: int) -> tuple[float, float]:
    """95 % interval of a share, by Wilson's score (JASA 22, 1927, 209-212), fit for few examples too."""
    share, z2 = right / rows, Z_975 * Z_975
    middle = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = Z_975 * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows * rows)) / (1 + z2 / rows)
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def front(points: Sequence[Point], cost: Callable[[Point], float]) -> list[Point]:
    """Those that no other is better than, by rising cost."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: (cost(one), -one.accuracy)):
        if not kept or point.accuracy > kept[-1].accuracy:
            kept.append(point)
    return kept


def check_plot(path: Path) -> None:
    """See that a plot can be written there.

    Raises:
        CallerError: it has another suffix, or its folder is not there.
    """
    if path.suffix not in _SUFFIXES:
        raise CallerError(f"{path}: write to one of {', '.join(_SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise CallerError(f"{path.absolute().parent} is not a folder; make it, or write the plot elsewhere")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise CallerError(f"you may not write in {path.absolute().parent}; write the plot elsewhere")


def draw(points: Sequence[Point], path: Path) -> None:
    """Write accuracy against bytes and against latency, as .png, .svg or a page (.html) with the table below.

    Raises:
        CallerError: as `check_plot`.
    """
    check_plot(path)
    from ferryman.profiler.pareto_plot import pareto_figure

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = pareto_figure(points)
        if path.suffix != ".html":
            _replace(path, lambda scratch: figure.savefig(scratch, dpi=150))
            return
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "plot.svg"
            figure.savefig(image)
            svg = image.read_text()
        _replace(path, lambda scratch: scratch.write_text(_page(points, svg[svg.index("<svg") :])))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside, then put it in the old one's place, which is kept whole until then."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")
    try:
        write(scratch)
        scratch.replace(path)
    except OSError as error:
        raise CallerError(
            f"{path} cannot be written: {error.strerror}; make room, or write the plot elsewhere"
        ) from error
    finally:
        scratch.unlink(missing_ok=True)


def _page(points: Sequence[Point], svg: str) -> str:
    import jinja2

    template = jinja2.Environment(autoescape=True).from_string(
        "<!doctype html><meta charset=utf-8><title>accuracy against cost</title>"
        "<style>body{font:15px sans-serif;max-width:70em;margin:2em auto}td,th{padding:.2em .8em;text-align:left}"
        "</style>"
        "<h1>Accuracy against cost</h1>{{ svg | safe }}<table><tr><th>package<th>form<th>interpreter<th>accuracy"
        "<th>95 % of<th>bytes<th>us a call<th>+- %<th>examples</tr>{% for row in rows %}<tr>"
        "{% for cell in row %}<td>{{ cell }}{% endfor %}</tr>{% endfor %}</table><p>{{ note }}</p>"
    )
    return template.render(rows=[_cells(one) for one in points], svg=svg, note=NOTE)


def _cells(p: Point) -> tuple[str, ...]:
    """A row; n/a where it is not known."""
    within, error = MISSING, MISSING
    if p.accuracy_low is not None and p.accuracy_high is not None:
        within = f"{100 * p.accuracy_low:.1f}-{100 * p.accuracy_high:.1f} %"
    if p.latency_error is not None and math.isfinite(p.latency_error):
        error = number(100 * p.latency_error, 2)
    cells = (f"{p.accuracy:.2%}", within, f"{p.size_bytes:,}", f"{p.latency_us:,.0f}", error, f"{p.examples:,}")
    return p.package, p.form, p.interpreter, *cells


def table(points: Sequence[Point]) -> str:
    """Rows for people."""
    rows: list[tuple[str, ...]] = [
        ("package", "form", "interpreter", "accuracy", "95 % of", "bytes", "us a call", "+- %", "examples")
    ]
    rows += [_cells(p) for p in points]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join((*lines, *textwrap.wrap(NOTE, 100)))


def to_json(points: Sequence[Point]) -> str:
    """One record a line."""
    return "\n".join(encode(point).decode() for point in points)
