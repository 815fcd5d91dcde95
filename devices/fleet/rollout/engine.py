"""The state machine of a rollout: reports, requests and time in; changes out. It touches no clock, disk or socket.

After a kill it is built anew of what was committed, hears from the broker what devices say by now, and goes on: what
it tells a device has a version, and the same version always says the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from ferryman.devices.fleet.rollout.fit import variants_for
from ferryman.devices.fleet.rollout.health import RingHealth, complaint, ring_health
from ferryman.devices.fleet.rollout.records import (
    ENDED,
    FAILURES,
    UNDER_WAY,
    VERSION_MAX,
    Changes,
    Entry,
    Failure,
    Found,
    Phase,
    Plan,
    Progress,
    Row,
    Standing,
    Verb,
    standing,
)
from ferryman.devices.fleet.rollout.words import counted
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.rollout import Desired, Health, Reported

ENGINE = "ferryman"
"""Who did what nobody asked for, in the audit log."""
_SENT = {"asked", "withdrawn"}
_SERVED = {"trial", "confirmed", "rolled-back"}
_SETTLED = {"confirmed", "rolled-back", "refused", "failed"}
_AGAIN: frozenset[Standing] = FAILURES | {"stuck", "returned", "kept"}
_ALLOWED: dict[Verb, frozenset[Phase]] = {
    "pause": frozenset({"running", "approval"}),
    "resume": frozenset({"paused"}),
    "approve": frozenset({"approval"}),
    "abort": frozenset({"running", "paused", "approval", "done", "halted"}),
    "roll-back": frozenset({"running", "paused", "approval", "done", "halted"}),
    "retry": frozenset({"running", "paused", "approval", "done", "halted"}),
}


def check_verb(plan: Plan, progress: Progress, verb: Verb) -> None:
    """See that a rollout is in a phase for what a person asks.

    Raises:
        CallerError: it is not; the message says what can be asked.
    """
    phase = progress.phase
    if phase not in _ALLOWED[verb]:
        fit = ", ".join(sorted(name for name, phases in _ALLOWED.items() if phase in phases)) or "nothing yet"
        raise CallerError(f"rollout {plan.id} is {phase}, and cannot {verb} now; it can {fit}")


class Engine:
    """One rollout in memory; `take` what changed after each step, commit it, and only then send it."""

    def __init__(
        self,
        plan: Plan,
        progress: Progress,
        rows: Iterable[Row],
        found: Iterable[Found] = (),
        versions: Mapping[str, int] | None = None,
    ) -> None:
        """Build it of what was committed.

        Args:
            plan: what was asked for.
            progress: how far it is.
            rows: a row for each of its devices.
            found: what devices measured of this package, in this rollout or before.
            versions: of the last `Desired` of each device that the store knows of.
        """
        self.plan = plan
        self.progress = progress
        self.rows = {row.device: row for row in rows}
        self._found: dict[str, dict[str, Found]] = defaultdict(dict)
        for one in found:
            self._found[one.kind][one.device] = one
        self._versions = Counter(dict(versions or {}))
        self._reports: dict[str, Reported] = {}
        self._blamed: set[str] = set()
        """Devices whose nonsense is in the audit log."""
        self._serving: dict[str, str] = {}
        """Device -> package, as its status told last."""
        self.heard_since_ns = 0
        """Since when the broker is there."""
        self._saved = progress
        self._dirty: dict[str, Row] = {}
        self._entries: list[Entry] = []
        self._news: list[Found] = []

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.progress.phase in ENDED

    def take(self) -> Changes | None:
        """What changed since the last call; None: nothing."""
        if self.progress == self._saved and not (self._dirty or self._entries or self._news):
            return None
        taken = Changes(
            progress=self.progress,
            rows=tuple(self._dirty.values()),
            entries=tuple(self._entries),
            found=tuple(self._news),
        )
        self._saved, self._dirty, self._entries, self._news = self.progress, {}, [], []
        return taken

    def connected(self, now_ns: int) -> None:
        """The broker is there, and devices can be heard from now on."""
        self.heard_since_ns = now_ns

    def hear_status(self, status: Status) -> None:
        """Take note of what a device serves."""
        if status.package_sha256 is not None:
            self._serving[status.device] = status.package_sha256

    def hear_desired(self, device: str, desired: Desired, now_ns: int) -> None:
        """Take note of what a device was asked for, by whomever."""
        if desired.version > VERSION_MAX:
            self.hear_nonsense(device, "it was asked for a version that no host counts to", now_ns)
            return
        self._versions[device] = max(self._versions[device], desired.version)
        row = self.rows.get(device)
        if row is not None and desired.rollout != self.plan.id:
            self._meet(row, desired.rollout, desired.version, now_ns)

    def hear_report(self, report: Reported, now_ns: int) -> None:
        """Take note of what a device says of itself."""
        name = report.device
        if report.desired_version > VERSION_MAX:
            self.hear_nonsense(name, "it names a version that no host counts to", now_ns)
            return
        self._versions[name] = max(self._versions[name], report.desired_version)
        self._reports[name] = report
        row = self.rows.get(name)
        if row is None or (report.rollout == self.plan.id and report.desired_version < row.version):
            return
        if report.rollout != self.plan.id or report.desired_version > row.version:
            self._meet(row, report.rollout, report.desired_version, now_ns)
        elif row.state in _SENT and row.report != report:
            self._note(row, report, now_ns)

    def hear_nonsense(self, device: str, why: str, now_ns: int) -> None:
        """Take note that what a device said is no report; it is as if it had said nothing, and people are told."""
        row = self.rows.get(device)
        if row is None or row.nonsense or row.state in {"cleared", "superseded"}:
            return
        self._put(replace(row, nonsense=why))
        if device not in self._blamed:
            self._blamed.add(device)
            self._log(now_ns, "is not understood", why, device=device)

    def _meet(self, row: Row, rollout: str, version: int, now_ns: int) -> None:
        """Somebody asks a device of ours for something else: the later rollout has it."""
        if row.state in {"cleared", "superseded"}:
            return
        if rollout > self.plan.id:
            self._put(replace(row, state="superseded"))
            self._log(now_ns, "superseded", f"by rollout {rollout}", device=row.device)
        elif row.state in _SENT and version >= row.version:
            # An earlier rollout counted further; or it was this one, and the file is an older copy. The device
            # takes no older version, so it is told once more.
            self._put(replace(row, version=self._next_version(row), asked_at_ns=now_ns, report=None))
            self._log(now_ns, "asks again", f"it has seen version {version}, of {rollout}", device=row.device)

    def _note(self, row: Row, report: Reported, now_ns: int) -> None:
        before = row.report.state if row.report else None
        kind = report.model or row.kind
        row = replace(row, report=report, heard_at_ns=now_ns, kind=kind, nonsense="")
        if row.before_sha256 is None and row.state == "asked" and report.state not in _SERVED:
            row = replace(row, before_release=report.release, before_sha256=report.package_sha256)
        self._put(row)
        if report.state in _SETTLED and report.state != before:
            why = f"{report.error.party}: {report.error.message}" if report.error else ""
            self._log(now_ns, self._standing(row, now_ns), why, device=row.device)
        if row.state == "asked" and report.measured and report.state in _SERVED:
            found = Found(device=row.device, kind=kind, measured=report.measured)
            if self._found[kind].get(row.device) != found:
                self._found[kind][row.device] = found
                self._news.append(found)
        unfit = report.state in {"failed", "refused"} and report.error is not None and report.error.party == "device"
        if unfit and row.variants and row.state == "asked":
            self._put(replace(row, state="pending", all_variants=True, report=None))
            self._log(
                now_ns, "asks again", "its class's choice is not for it: it fetches all variants", device=row.device
            )

    def request(self, verb: Verb, who: str, why: str, now_ns: int) -> None:
        """Do what a person asks.

        Raises:
            CallerError: the rollout is in no phase for it.
        """
        check_verb(self.plan, self.progress, verb)
        if verb == "retry":
            again = [row for row in self._opened() if self._standing(row, now_ns) in _AGAIN]
            if not again:
                raise CallerError(f"rollout {self.plan.id} has no device that failed; see `ferryman rollout status`")
            for row in again:
                self._put(replace(row, state="pending", report=None, failed=None, force=True, all_variants=False))
            why = why or counted(len(again), "device")
        self._log(now_ns, verb, why, who=who)
        if verb in {"abort", "roll-back"}:
            self._withdraw("aborted", why or f"aborted by {who}", now_ns, everyone=verb == "roll-back")
        elif verb == "pause":
            self._set(phase="paused", why=why or f"paused by {who}")
        elif verb == "approve":
            self._open(self.progress.ring + 1, now_ns, approved=self.progress.ring + 1)
        else:
            self._set(phase="running", why="", settled_at_ns=None if verb == "retry" else self.progress.settled_at_ns)

    def refuse(self, verb: Verb, who: str, why: str, now_ns: int) -> None:
        """Put on record that a request was not done."""
        self._log(now_ns, f"{verb} was refused", why, who=who)

    def tick(self, now_ns: int) -> None:
        """Do what time and reports ask for."""
        if self.ended:
            return
        if self.progress.phase == "returning":
            if not any(self._standing(row, now_ns) == "returning" for row in self.rows.values()):
                self._end(self.progress.ending, self.progress.why, now_ns)
            return
        if all(row.state == "superseded" for row in self.rows.values()):
            self._end("aborted", "later rollouts have all of its devices", now_ns)
            return
        complete = self._complete(now_ns)
        if (why := self._past(now_ns, complete=complete)) is not None:
            self._halt(why, now_ns)
            return
        if self.progress.phase == "paused":
            return
        self._ask(now_ns)
        if complete:
            self._settled(now_ns)
        elif self.progress.settled_at_ns is not None:  # one that was late came after all
            self._set(settled_at_ns=None, phase="running")

    def _past(self, now_ns: int, *, complete: bool) -> str | None:
        """What is past a threshold, in any ring that was opened; None: nothing is."""
        current = self.progress.ring
        for ring in range(current + 1):
            past = complaint(self.health(ring, now_ns), self.plan.thresholds, complete=complete or ring < current)
            if past is not None:
                return f"ring {ring + 1}: {past}"
        past = self._failed_whole(now_ns)
        return f"ring {current + 1}: {past}" if past else None

    def health(self, ring: int, now_ns: int) -> RingHealth:
        """How a ring does."""
        rows = [row for row in self.rows.values() if row.ring == ring]
        healths: list[Health] = [
            row.report.health
            for row in rows
            if row.state == "asked"
            and row.report
            and row.report.health
            and row.report.state in {"confirmed", "rolled-back"}
        ]
        return ring_health([self._standing(row, now_ns) for row in rows], healths)

    def _standing(self, row: Row, now_ns: int) -> Standing:
        return standing(row, self.plan, now_ns, self.heard_since_ns)

    def _opened(self) -> list[Row]:
        return [row for row in self.rows.values() if row.ring <= self.progress.ring]

    def _complete(self, now_ns: int) -> bool:
        """Whether nobody of the ring is waited for; a ring but the last needs one at least that does well."""
        found = self._answers(now_ns)
        return found is not None and (
            self._is_last() or "confirmed" in found or all(one == "superseded" for one in found)
        )

    def _failed_whole(self, now_ns: int) -> str | None:
        """What is wrong with a ring whose failures are within the bar, where nobody did well who could speak for it."""
        found = self._answers(now_ns)
        if found is None or self._is_last() or "confirmed" in found or not FAILURES & set(found):
            return None
        failed = counted(sum(one in FAILURES for one in found), "device")
        return f"{failed} failed, and none confirmed the release"

    def _answers(self, now_ns: int) -> list[Standing] | None:
        """How the devices of the ring stand; None: somebody is waited for."""
        found = [self._standing(row, now_ns) for row in self.rows.values() if row.ring == self.progress.ring]
        return None if any(one == "pending" or one in UNDER_WAY for one in found) else found

    def _is_last(self) -> bool:
        return self.progress.ring + 1 >= self.progress.rings

    def _settled(self, now_ns: int) -> None:
        ring, since_ns = self.progress.ring, self.progress.settled_at_ns
        if since_ns is None:
            self._log(now_ns, f"ring {ring + 1} has answered", self._told(ring, now_ns))
            self._set(settled_at_ns=now_ns)
            return
        if now_ns - since_ns < self.plan.soak_s * 1e9:
            return
        if self._is_last():
            self._end("done", self._told(None, now_ns), now_ns)
        elif not self.plan.manual or self.progress.approved > ring:
            self._open(ring + 1, now_ns)
        elif self.progress.phase != "approval":
            self._log(now_ns, "waits for approval", f"of ring {ring + 2}")
            self._set(phase="approval", why=f"ring {ring + 2} waits for `ferryman rollout approve {self.plan.id}`")

    def _told(self, ring: int | None, now_ns: int) -> str:
        counts = Counter(self._standing(row, now_ns) for row in self.rows.values() if ring in {None, row.ring})
        return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))

    def _open(self, ring: int, now_ns: int, approved: int | None = None) -> None:
        self._set(
            phase="running",
            why="",
            ring=ring,
            settled_at_ns=None,
            approved=self.progress.approved if approved is None else approved,
        )
        devices = sum(row.ring == ring for row in self.rows.values())
        self._log(now_ns, f"opens ring {ring + 1}", counted(devices, "device"))
        self._ask(now_ns)

    def _ask(self, now_ns: int) -> None:
        """Ask those of the opened rings that have not been, as many as may be under way."""
        opened = self._opened()
        pending = [row for row in opened if row.state == "pending"]
        if not pending:
            return
        busy = [row for row in opened if self._standing(row, now_ns) in UNDER_WAY]
        free = len(pending) if self.plan.parallel is None else self.plan.parallel - len(busy)
        measuring = {row.kind for row in busy}
        tried = {row.kind for row in opened if row.report and row.report.state in _SETTLED}
        for row in pending:
            if free <= 0:
                return
            variants: tuple[str, ...] = ()
            if self.plan.pick != "first" and row.kind and not row.all_variants:
                found = self._found.get(row.kind, {})
                if not found and row.kind in measuring - tried:
                    continue  # one of its kind measures all variants: this one need not fetch them
                variants = variants_for((one.measured for one in found.values()), self.plan.pick)
                measuring.add(row.kind)
            self._ask_one(row, variants, now_ns)
            free -= 1

    def _ask_one(self, row: Row, variants: tuple[str, ...], now_ns: int) -> None:
        release, sha256 = row.before_release, row.before_sha256
        if row.tries == 0:
            release, sha256 = self._serves(row.device)
        asked = replace(
            row,
            state="asked",
            version=self._next_version(row),
            asked_at_ns=now_ns,
            tries=row.tries + 1,
            variants=variants,
            before_release=release,
            before_sha256=sha256,
            report=None,
        )
        self._put(asked)

    def _serves(self, device: str) -> tuple[str | None, str | None]:
        """Release and package, as far as the device has told."""
        report, package = self._reports.get(device), self._serving.get(device)
        if report is not None and report.package_sha256 is not None and package in {None, report.package_sha256}:
            return report.release, report.package_sha256
        return None, package  # it came by another way since

    def _next_version(self, row: Row) -> int:
        version = max(self._versions[row.device], row.version) + 1
        self._versions[row.device] = version
        return version

    def _end(self, phase: Phase, why: str, now_ns: int) -> None:
        self._log(now_ns, phase, why)
        self._set(phase=phase, why=why)

    def _halt(self, why: str, now_ns: int) -> None:
        why += self._example(now_ns)
        self._log(now_ns, "halts", why)
        if self.plan.roll_back:
            self._withdraw("halted", why, now_ns, everyone=True)
        else:
            self._set(phase="halted", why=why)

    def _example(self, now_ns: int) -> str:
        """What a device that failed said; devices of a ring often say the same."""
        for row in self.rows.values():
            if row.report and row.report.error and self._standing(row, now_ns) in FAILURES:
                return f"; {row.device}: {row.report.error.party}: {row.report.error.message}"
        return ""

    def _withdraw(self, ending: Phase, why: str, now_ns: int, *, everyone: bool) -> None:
        """Have devices go back to what they had: all that were asked, or those only that are not confirmed."""
        for row in list(self.rows.values()):
            stands = self._standing(row, now_ns)
            if row.state != "asked" or (not everyone and stands == "confirmed"):
                continue
            error = row.report.error if row.report else None
            failed = Failure(standing=stands, error=error) if stands in FAILURES else None
            if row.before_sha256 in {None, self.plan.package_sha256}:
                self._put(replace(row, state="cleared", failed=failed))
                continue
            version = self._next_version(row)
            self._put(replace(row, state="withdrawn", version=version, asked_at_ns=now_ns, report=None, failed=failed))
        self._set(phase="returning", ending=ending, why=why)

    def _set(self, **changes: object) -> None:
        self.progress = replace(self.progress, **changes)

    def _put(self, row: Row) -> None:
        self.rows[row.device] = row
        self._dirty[row.device] = row

    def _log(self, now_ns: int, what: str, why: str = "", *, who: str = ENGINE, device: str | None = None) -> None:
        self._entries.append(Entry(at_ns=now_ns, who=who, what=what, why=why, device=device))
