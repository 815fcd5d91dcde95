"""Answers what a package costs on a device: from what was measured before, else by measuring it there, in turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace

from ferryman.devices.fleet.answers import Answers, Question
from ferryman.devices.fleet.client import AgentClient
from ferryman.devices.fleet.inventory import Device, LocalDevice
from ferryman.devices.fleet.metrics import METRICS, OF_ENERGY, check_metrics
from ferryman.devices.fleet.profile import broker_of, profile
from ferryman.devices.fleet.push import push
from ferryman.devices.fleet.table import Row, Table
from ferryman.devices.fleet.turns import turn
from ferryman.profiler.conditions import read_conditions
from ferryman.profiler.standing import standing
from ferryman.runtime.contracts.errors import CallerError, DeviceError, FerrymanError, WireError, to_wire
from ferryman.runtime.contracts.measurement import Conditions, Measurement, ProfileSpec
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.package import open_package
from ferryman.runtime.session import INTERPRETERS, installed

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """One of those that are compared: a package, or why there is none."""

    name: str
    package: Path | WireError


@dataclass(frozen=True)
class State:
    """What a device is now, as far as it moves the numbers."""

    interpreters: Mapping[str, str]
    """Name -> version, preferred first."""
    standing: dict[str, str]


def read_state(device: Device) -> State:
    """Ask a device.

    Raises:
        CallerError: the devices file has no broker for it.
        LinkError: it does not answer.
    """
    if isinstance(device, LocalDevice):
        versions = {name: version for runtime in INTERPRETERS for name, version in installed(runtime).items()}
        return State(versions, standing(read_conditions({})))
    with AgentClient(broker_of(device), device.name) as agent:
        status = agent.status()
    return State(status.interpreters, {"ferryman": status.ferryman} | status.standing)


class Profile(Protocol):
    """How a package is measured on a device."""

    def __call__(
        self, package: Path, device: Device, spec: ProfileSpec, *, progress: Progress
    ) -> tuple[Measurement, ...]:
        """See `ferryman.devices.fleet.profile.profile`."""


@dataclass(frozen=True)
class Hands:
    """What an oracle works with; a test brings its own."""

    profile: Profile = profile
    push: Callable[[Path, Device], object] = push
    state: Callable[[Device], State] = read_state


class Oracle:
    """Measures packages on devices, each once."""

    def __init__(self, answers: Answers, hands: Hands | None = None) -> None:
        """Take where answers are kept; nothing is touched yet."""
        self._answers = answers
        self._hands = hands or Hands()

    def ask(
        self,
        candidates: Sequence[Candidate],
        devices: Sequence[Device],
        metrics: Sequence[str],
        spec: ProfileSpec,
        *,
        fresh: bool = False,
        progress: Progress = lambda _: None,
    ) -> Table:
        """Measure each candidate on each device; devices work at the same time, each on one candidate.

        Args:
            candidates: what to compare.
            devices: where; one that is not `local` serves each candidate in turn, and then goes on with the last.
            metrics: names of `METRICS`.
            spec: of the measurements; whether energy is measured is what the metrics say.
            fresh: measure also what was measured before.
            progress: told what begins, by one thread at a time.

        Returns:
            A row for each variant and interpreter; what fails is a row with its error, and is tried again next time.

        Raises:
            CallerError: a metric is not known, or there is no device, or one twice.
        """
        names = check_metrics(metrics)
        where = [device.name for device in devices]
        if not where or len(set(where)) != len(where):
            raise CallerError(f"expected one device or more, each once, found {where}")
        spec = replace(spec, energy=bool(OF_ENERGY & set(names)))
        stop, speaking = threading.Event(), threading.Lock()

        def tell(text: str) -> None:
            with speaking:
                progress(text)

        def work(device: Device) -> list[list[Row]]:
            visit = _Visit(self._hands, self._answers, device, names, spec, fresh, stop, tell)
            return visit.rows(candidates)

        if len(devices) == 1:
            columns = [work(devices[0])]
        else:
            with ThreadPoolExecutor(len(devices)) as pool:
                try:
                    columns = list(pool.map(work, devices))
                finally:
                    stop.set()  # an interrupted caller waits for what is being measured, and for no more
        rows = tuple(row for of_candidate in zip(*columns, strict=True) for rows in of_candidate for row in rows)
        return Table(metrics=names, rows=rows)


@dataclass(frozen=True)
class _Visit:
    """One call's work on one device."""

    hands: Hands
    answers: Answers
    device: Device
    metrics: tuple[str, ...]
    spec: ProfileSpec
    fresh: bool
    stop: threading.Event
    tell: Progress

    def rows(self, candidates: Sequence[Candidate]) -> list[list[Row]]:
        """Those of each candidate."""
        try:
            state = self.hands.state(self.device)
        except FerrymanError as error:
            return [[self._row(number, one.name, to_wire(error))] for number, one in enumerate(candidates)]
        return [self._of(number, one, state) for number, one in enumerate(candidates)]

    def _of(self, number: int, candidate: Candidate, state: State) -> list[Row]:
        if isinstance(candidate.package, WireError):
            return [self._row(number, candidate.name, candidate.package)]
        try:
            asked = self._questions(candidate.package, state)
            found = self._known(asked)
            if missing := {key: one for key, one in asked.items() if key not in found}:
                with turn(self.device, self.stop, self.tell):
                    found |= self._known(missing)  # another may have measured it meanwhile
                    missing = {key: one for key, one in missing.items() if key not in found}
                    made = self._measured(candidate, missing)
                found |= made
            else:
                made = {}
        except Exception as error:  # noqa: BLE001  # one that fails does not end the search
            return [self._row(number, candidate.name, to_wire(error))]
        return [
            self._row(number, candidate.name, found[key], question, cached=key not in made)
            for key, question in asked.items()
        ]

    def _questions(self, package: Path, state: State) -> dict[str, Question]:
        """What there is to measure, by key: each variant that is asked for on each interpreter that might run it."""
        with open_package(package) as opened:
            sha256, manifest = opened.sha256, opened.manifest
        names = [variant.name for variant in manifest.variants]
        if unknown := sorted(set(self.spec.variants) - set(names)):
            raise CallerError(f"no variant {', '.join(unknown)} in {manifest.name}; there are: {', '.join(names)}")
        pairs = [
            (variant.name, interpreter)
            for variant in manifest.variants
            if not self.spec.variants or variant.name in self.spec.variants
            for interpreter in state.interpreters
            if interpreter in variant.requires.interpreters
        ]
        there = list(dict.fromkeys(interpreter for _, interpreter in pairs))
        if not there:
            raise DeviceError(
                f"{self.device.name} has no interpreter for {manifest.name}; install one of its runtime's"
            )
        if unknown := sorted(set(self.spec.interpreters) - set(there)):
            raise CallerError(
                f"no interpreter {', '.join(unknown)} for {manifest.name} on {self.device.name}; there are: "
                + ", ".join(there)
            )
        asked = [
            Question(
                package_sha256=sha256,
                device=self.device.name,
                variant=variant,
                interpreter=interpreter,
                interpreter_version=state.interpreters[interpreter],
                spec=replace(self.spec, variants=(variant,), interpreters=(interpreter,), timeout_s=0.0),
                standing=state.standing,
            )
            for variant, interpreter in pairs
            if not self.spec.interpreters or interpreter in self.spec.interpreters
        ]
        return {question.key: question for question in asked}

    def _known(self, asked: Mapping[str, Question]) -> dict[str, Measurement | WireError]:
        """What was answered before, of these."""
        if self.fresh:
            return {}
        found = {key: self.answers.find(question) for key, question in asked.items()}
        return {key: answer for key, answer in found.items() if answer is not None}

    def _measured(self, candidate: Candidate, asked: Mapping[str, Question]) -> dict[str, Measurement | WireError]:
        """Measure, each by itself, so that one that crashes takes no other with it."""
        assert isinstance(candidate.package, Path)  # noqa: S101  # or there were no questions
        if asked and not isinstance(self.device, LocalDevice):
            self.tell(f"{self.device.name}: pushing {candidate.name}")
            self.hands.push(candidate.package, self.device)
        found: dict[str, Measurement | WireError] = {}
        for key, question in asked.items():
            what = f"{candidate.name}, {question.variant} on {question.interpreter}"
            self.tell(f"{self.device.name}: {what}")
            spec = replace(question.spec, timeout_s=self.spec.timeout_s)
            try:
                (answer,) = self.hands.profile(candidate.package, self.device, spec, progress=lambda _: None)
            except Exception as error:  # noqa: BLE001  # see `_of`
                found[key] = to_wire(error)
                continue
            found[key] = answer
            before, after = (_known_of(one, question) for one in (answer.before, answer.after))
            if before == after:  # else it was measured in two states, and answers for neither
                self.answers.keep(replace(question, standing=before), answer)
        return found

    def _row(
        self,
        number: int,
        candidate: str,
        found: Measurement | WireError,
        question: Question | None = None,
        *,
        cached: bool = False,
    ) -> Row:
        values = {
            name: METRICS[name](found) if isinstance(found, Measurement) else Unavailable(reason=found.message)
            for name in self.metrics
        }
        return Row(
            candidate=candidate,
            number=number,
            device=self.device.name,
            variant=question.variant if question else None,
            interpreter=question.interpreter if question else None,
            values=values,
            measurement=found if isinstance(found, Measurement) else None,
            error=found if isinstance(found, WireError) else None,
            cached=cached,
        )


def _known_of(conditions: Conditions, question: Question) -> dict[str, str]:
    """What stands in a measurement, of what the device told when it was asked."""
    return {name: text for name, text in standing(conditions).items() if name in question.standing}
