"""Ask devices what models cost, from inside a search, and ask the store what a fleet sent."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ferryman.devices.fleet.answers import Answers, cache_home
from ferryman.devices.fleet.inventory import Device, find_device, read_devices
from ferryman.devices.fleet.metrics import check_metrics
from ferryman.devices.fleet.oracle import Candidate, Hands, Oracle
from ferryman.devices.fleet.table import Table
from ferryman.options import DATABASE, DATABASE_VARIABLE
from ferryman.runtime.contracts.errors import CallerError, WireError, to_wire
from ferryman.runtime.contracts.measurement import ProfileSpec
from ferryman.runtime.contracts.record import Record

if TYPE_CHECKING:
    from ferryman.devices.fleet.query.records import FleetStatus
    from ferryman.devices.fleet.store.store import Store
    from ferryman.frames import Frame

log = logging.getLogger(__name__)
Progress = Callable[[str], None]
_METRICS = ("latency_ms", "memory_mb", "artifact_kb")
_PACKAGE = "candidate"
"""Its name is in a package's hash; the candidate's own name must not be, or the same model is measured twice."""


class Fleet:
    """The devices of a devices file, as a search asks them; and what devices sent to the collector's store.

    Answers of the store are DataFrames: of pandas, or polars, or lists of records where neither is installed (see
    `ferryman.devices.fleet.query.records`); `frame` asks for one of them. Times are UTC timestamps, and what is not
    known is null. What an answer leaves out is a warning in the log. Each method raises CallerError for a bad argument
    or a database that is not there, and StoreError for one that cannot be read.
    """

    def __init__(
        self,
        devices_file: Path | str | None = None,
        cache: Path | str | None = None,
        database: Path | str | None = None,
        *,
        hands: Hands | None = None,
    ) -> None:
        """Read the devices file; the store is opened for each question.

        Args:
            devices_file: None takes the usual one; `local`, this machine, needs none.
            cache: folder of what was measured before; None takes `ferryman/fleet` in the user's cache.
            database: the collector's store, a file or postgresql://...; None: $FERRYMAN_DATABASE, or ferryman.sqlite.
            hands: how devices are asked; a test brings its own.

        Raises:
            CallerError: the devices file cannot be read, or an argument is none of its kind.
        """
        for name, one in (("devices_file", devices_file), ("cache", cache), ("database", database)):
            if one is not None and not isinstance(one, str | Path):
                raise CallerError(f"{name} is a path, found {one!r:.100}")
        self._source = devices_file
        self._devices = read_devices(devices_file)
        self._database = database or os.environ.get(DATABASE_VARIABLE) or DATABASE
        self._oracle = Oracle(Answers(Path(cache) if cache else cache_home() / "fleet"), hands)

    def measure(
        self,
        candidates: Mapping[str, Any] | Sequence[Any],
        device: str | Device | Sequence[str | Device] = "local",
        metrics: Sequence[str] = _METRICS,
        *,
        inputs: Any = None,  # noqa: ANN401  # as `convert` takes them
        to: Sequence[Literal["executorch", "tflite"]] = ("executorch",),
        form: str = "fp32",
        spec: ProfileSpec | None = None,
        fresh: bool = False,
        progress: Progress = lambda _: None,
    ) -> Table:
        """Measure candidates; whichever fails is a row with its error.

        A device other than `local` serves each candidate in turn and keeps the last, so name one that serves nobody.

        Args:
            candidates: packages (their paths), modules in eval mode, or pairs (module, inputs); by name, or in a row.
            device: one or several, by name or as `find_device` finds them; several work at the same time.
            metrics: names, see docs/profiler/search.md.
            inputs: the example call of modules that come without.
            to: runtimes that modules are converted to.
            form: of the artifacts.
            spec: how to measure, and which variants and interpreters; whether energy is measured the metrics say.
            fresh: measure also what was measured before under the same conditions.
            progress: told what begins, by one thread at a time.

        Returns:
            A row for each candidate, device, variant and interpreter.

        Raises:
            CallerError: a metric or device is not known, or a candidate is nothing of the above.
        """
        names = check_metrics(metrics)
        named = _named(candidates, inputs)
        several = [device] if isinstance(device, str) or not isinstance(device, Sequence) else device
        devices = [find_device(self._devices, one, self._source) if isinstance(one, str) else one for one in several]
        with tempfile.TemporaryDirectory(prefix="ferryman-fleet-") as folder:

            def package(number: int, name: str, given: Any) -> Path | WireError:  # noqa: ANN401  # see `candidates`
                if isinstance(given, str | Path):
                    return Path(given)
                from ferryman.converter.api import convert

                progress(f"converting {name}, {number + 1}/{len(named)}")
                model, example = given if isinstance(given, tuple) else (given, inputs)
                try:
                    made = convert(model, example, to=to, form=form, output=Path(folder, str(number)), name=_PACKAGE)
                except Exception as error:  # noqa: BLE001  # one that is refused does not end the search
                    return to_wire(error)
                return made.path

            # All are converted first: on `local` that would disturb what is being measured.
            made = [Candidate(name, package(number, name, given)) for number, (name, given) in enumerate(named)]
            return self._oracle.ask(made, devices, names, spec or ProfileSpec(), fresh=fresh, progress=progress)

    def status(self, query: str | None = None, *, since: str | int | None = None) -> FleetStatus:
        """Sum the fleet up; see `ferryman.devices.fleet.query.status.fleet_status`."""
        from ferryman.devices.fleet.query.status import fleet_status

        with self._store() as store:
            found = fleet_status(store, now_ns=time.time_ns(), query=query, since=since)
        _say(found.left_out)
        return found

    def devices(self, query: str | None = None, *, frame: Frame | None = None, **asked: Any) -> Any:  # noqa: ANN401  # see the class
        """A row for each device (`DeviceRow`).

        `device`, `since`, `until`, `sort`, `limit` as in `query.devices.device_rows`.
        """
        from ferryman.devices.fleet.query.devices import device_rows
        from ferryman.devices.fleet.query.records import DeviceRow

        return self._ask(device_rows, DeviceRow, frame, {"query": query, "limit": None, **asked})

    def runs(self, query: str | None = None, *, frame: Frame | None = None, **asked: Any) -> Any:  # noqa: ANN401  # as above
        """A row for each measurement (`RunRow`).

        `device`, `package`, `since`, `until`, `limit` as in `query.runs.runs`.
        """
        from ferryman.devices.fleet.query.records import RunRow
        from ferryman.devices.fleet.query.runs import runs

        return self._ask(runs, RunRow, frame, {"query": query, "limit": None, **asked})

    def samples(self, query: str | None = None, *, frame: Frame | None = None, **asked: Any) -> Any:  # noqa: ANN401  # as above
        """A row for each sample (`SampleRow`), its metrics as columns.

        `device`, `since` (an hour ago), `until`, `limit` (1,000,000) as in `query.series.samples`; for more, export.
        """
        from ferryman.devices.fleet.query.records import SampleRow
        from ferryman.devices.fleet.query.series import samples

        return self._ask(samples, SampleRow, frame, {"query": query, "limit": 1_000_000, **asked})

    def series(
        self,
        device: str,
        metric: str,
        *,
        span: str | None = None,
        frame: Frame | None = None,
        **asked: Any,  # noqa: ANN401  # as above
    ) -> Any:  # noqa: ANN401  # as above
        """A row for each sample of a device, or for each `span`, such as 15m or 1d (`Point`).

        `since` (a day ago) and `until` as in `query.series.series`.
        """
        from ferryman.devices.fleet.query.records import Point
        from ferryman.devices.fleet.query.series import series
        from ferryman.devices.fleet.query.window import parse_span

        asked |= {"device": device, "metric": metric, "span_s": parse_span(span) if span else 0}
        return self._ask(series, Point, frame, asked)

    def logs(self, query: str | None = None, *, frame: Frame | None = None, **asked: Any) -> Any:  # noqa: ANN401  # as above
        """A row for each line (`LogRow`), the newest last.

        `device`, `level`, `grep`, `since`, `until`, `limit` (100,000) as in `query.logs.logs`.
        """
        from ferryman.devices.fleet.query.logs import logs
        from ferryman.devices.fleet.query.records import LogRow

        return self._ask(logs, LogRow, frame, {"query": query, "limit": 100_000, **asked})

    def alerts(self, query: str | None = None, *, frame: Frame | None = None, **asked: Any) -> Any:  # noqa: ANN401  # as above
        """A row for each alert (`AlertRow`).

        `past`, `device`, `since`, `until`, `limit` as in `query.alerts.alerts`.
        """
        from ferryman.devices.fleet.query.alerts import alerts
        from ferryman.devices.fleet.query.records import AlertRow

        return self._ask(alerts, AlertRow, frame, {"query": query, "limit": None, **asked})

    def compare(self, query: str | None = None, *, frame: Frame | None = None, **asked: Any) -> Any:  # noqa: ANN401  # as above
        """A row for each group and metric (`Compared`).

        `by` (package), `metrics`, `baseline`, `device`, `since`, `until`, `margin` as in `query.compare.compare`.
        """
        from ferryman.devices.fleet.query.compare import compare
        from ferryman.devices.fleet.query.records import Compared

        return self._ask(compare, Compared, frame, {"query": query, **asked})

    def _ask(self, question: Callable[..., Any], kind: type[Record], frame: str | None, asked: dict[str, Any]) -> Any:  # noqa: ANN401  # as above
        from ferryman.frames import check_frame, to_frame

        made = check_frame(frame)
        with self._store() as store:
            found = question(store, now_ns=time.time_ns(), **asked)
        _say(found.left_out)
        return to_frame(found.points if hasattr(found, "points") else found.rows, kind, made)

    @contextmanager
    def _store(self) -> Iterator[Store]:
        from ferryman.devices.fleet.store.store import open_store

        store = open_store(self._database, create=False)
        try:
            yield store
        finally:
            store.close()


def _say(left_out: Sequence[str]) -> None:
    for words in left_out:
        log.warning("left out: %s", words)


def _named(candidates: Mapping[str, Any] | Sequence[Any], inputs: Any) -> list[tuple[str, Any]]:  # noqa: ANN401  # as above
    """Candidates with a name each: their own, or the package's or class's, with a number where several have it.

    Raises:
        CallerError: there are none, or one is nothing that can be measured.
    """
    if isinstance(candidates, str | Path) or not isinstance(candidates, Mapping | Sequence) or not candidates:
        raise CallerError("candidates are one or more in a list, or in a dict by name")
    given = list(candidates.values() if isinstance(candidates, Mapping) else candidates)
    names = [_name(one, inputs) for one in given]
    if isinstance(candidates, Mapping):
        return list(zip(map(str, candidates), given, strict=True))
    count = Counter(names)
    return [
        (name if count[name] == 1 else f"{name} {number}", one)
        for number, (name, one) in enumerate(zip(names, given, strict=True))
    ]


def _name(candidate: Any, inputs: Any) -> str:  # noqa: ANN401  # as above
    """The package's or class's.

    Raises:
        CallerError: it is nothing that can be measured.
    """
    if isinstance(candidate, str | Path):
        return Path(candidate).stem
    pair = isinstance(candidate, tuple) and len(candidate) == 2  # noqa: PLR2004  # module and inputs
    module = candidate[0] if pair else candidate
    if not hasattr(module, "named_parameters") or not (pair or inputs is not None):
        raise CallerError(
            "a candidate is the path of a package, an nn.Module where there are inputs, or a pair (module, inputs); "
            f"found {candidate!r:.100}"
        )
    return type(module).__name__
