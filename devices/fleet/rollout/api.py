"""Rollouts as plain functions; the commands do the same with words around it."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from ferryman.devices.broker import BrokerConfig, parse_broker
from ferryman.devices.fleet.rollout.cost import Costs
from ferryman.devices.fleet.rollout.drive import Watch, drive
from ferryman.devices.fleet.rollout.options import check_names, option_names
from ferryman.devices.fleet.rollout.overview import Overview, overview
from ferryman.devices.fleet.rollout.preview import Preview, preview
from ferryman.devices.fleet.rollout.records import Plan
from ferryman.devices.fleet.rollout.start import begin, cut, known_devices, make_plan, select
from ferryman.devices.fleet.rollout.store import DEFAULT, RolloutStore
from ferryman.runtime.contracts.release import Release


def roll_out(
    release: str,
    to: str,
    *,
    repository: Path | str,
    broker: BrokerConfig | str,
    database: Path | str = DEFAULT,
    devices_file: Path | str | None = None,
    stop: threading.Event | None = None,
    watch: Watch = lambda _: None,
    **options: Any,  # noqa: ANN401  # those of make_plan, typed there
) -> Overview:
    """Bring a release to devices, ring by ring, and follow until the end.

    Args:
        release: `family/version`.
        to: a query, see `ferryman.devices.fleet.rollout.query`.
        repository: its folder.
        broker: where the devices are.
        database: file in which rollouts are kept.
        devices_file: None takes the usual one.
        stop: leaves it; `resume_rollout` goes on.
        watch: sees the engine after each change.
        options: how it goes, see `make_plan`.

    Returns:
        How it stands in the end; see its `progress.phase` and `exit_code`.

    Raises:
        CallerError: no such release, no device that the query means, or an option that makes no sense.
        LinkError: the broker cannot be reached, or refuses what is sent.
        RepositoryError: the repository is damaged.
        StoreError: the database cannot be read or written.
    """
    broker = parse_broker(broker) if isinstance(broker, str) else broker
    with Costs(Path(repository)) as costs:
        found = costs.release(release)
    plan = _plan(found, to, broker, options)
    rows = cut(plan, select(known_devices(broker, devices_file), to))
    with closing(RolloutStore(Path(database))) as store:
        begin(store, plan, rows)
        drive(store, plan.id, broker, stop=stop, watch=watch)
        return _overview(store, plan.id)


def preview_rollout(
    release: str,
    to: str,
    *,
    repository: Path | str,
    broker: BrokerConfig | str,
    devices_file: Path | str | None = None,
    **options: Any,  # noqa: ANN401  # as above
) -> Preview:
    """What `roll_out` would do, and the bytes it would take; nothing is sent or written.

    Raises: as `roll_out`.
    """
    broker = parse_broker(broker) if isinstance(broker, str) else broker
    with Costs(Path(repository)) as costs:
        found = costs.release(release)
        plan = _plan(found, to, broker, options)
        devices = select(known_devices(broker, devices_file), to)
        return preview(plan, cut(plan, devices), {one.target.name: one for one in devices}, costs)


def resume_rollout(
    rollout: str | None = None,
    *,
    broker: BrokerConfig | str,
    database: Path | str = DEFAULT,
    stop: threading.Event | None = None,
    watch: Watch = lambda _: None,
) -> Overview:
    """Drive a rollout on that was left; None: the last one. What people asked of it meanwhile is done.

    Raises: as `roll_out`; CallerError too where another process drives it.
    """
    broker = parse_broker(broker) if isinstance(broker, str) else broker
    with closing(RolloutStore(Path(database), create=False)) as store:
        plan, _ = drive(store, rollout, broker, stop=stop, watch=watch)
        return _overview(store, plan.id)


def rollout_status(rollout: str | None = None, *, database: Path | str = DEFAULT) -> Overview:
    """How a rollout stands; None: the last one.

    Raises:
        CallerError: there is none.
        StoreError: the database cannot be read.
    """
    with closing(RolloutStore(Path(database), create=False)) as store:
        return _overview(store, rollout)


def _plan(release: Release, to: str, broker: BrokerConfig, options: dict[str, Any]) -> Plan:
    check_names("a rollout has", options, option_names(make_plan, without=("broker", "now_ns")))
    return make_plan(release.name, release.package_sha256, to, broker=broker.address, **options)


def _overview(store: RolloutStore, rollout: str | None) -> Overview:
    plan, progress = store.find(rollout)
    return overview(plan, progress, store.rows(plan.id), time.time_ns())
