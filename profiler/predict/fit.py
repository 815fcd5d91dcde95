"""Learn a device's costs from measurements (nn-Meter's idea that operators add up; Zhang et al. 2021).

Every time that was measured, of a whole network or of one of its operators, is an equation: multiply-adds, loops, bytes
and calls of its operators, each times an unknown cost of their kind, and one more for every run. No cost is negative.
They are solved together by least squares, each equation in shares of its network's time, and those of a network that is
known less well count less. Kernels compute some channels at a time; how many is tried out, and the least held-out error
decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ferryman.profiler.predict.nonnegative import solve
from ferryman.profiler.predict.predictor import Cost, HasWork, HeldOut, Predictor, estimate_ns, features
from ferryman.profiler.standing import standing
from ferryman.profiler.stats import median_error, summarize
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Measurement
from ferryman.runtime.contracts.operators import Operators

Floats = NDArray[np.float64]
Measured = Measurement | tuple[Measurement, Sequence[HasWork]]
NETWORKS_LEAST = 8
FOLDS = 10
TILES = (1, 4, 8, 16, 32)
_UNKNOWNS = 4
"""Of a kind: ns a multiply-add, a loop, a byte, a call."""
_LEAST_ERROR = 0.05
"""Relative: nearer than that no such model comes, however well its network was measured."""
_PRIOR = 1e-3
"""How strongly costs are held to 0, so that what the equations leave open is not made up."""


class _Network(NamedTuple):
    name: str
    latency_ns: float
    weight: float
    work: tuple[HasWork, ...]
    equations: Floats
    """float[1 + operators that were timed, unknowns]: the whole network first."""
    times_ns: Floats


def fit(measured: Sequence[Measured]) -> Predictor:
    """Fit costs, and state their error: each network is predicted from costs that were fitted without it.

    Args:
        measured: of one device, interpreter, form and number of threads. A measurement with `operators` brings its own
            work and the time of each; to one without belongs its work (`ferryman.converter.work.work_of`).

    Raises:
        CallerError: they are of several devices, interpreters, forms or thread counts, or too few; or one has no work.
    """
    pairs = [one if isinstance(one, tuple) else (one, _own_work(one)) for one in measured]
    if not pairs:
        raise CallerError(f"there are no measurements to fit; measure {NETWORKS_LEAST} networks or more")
    first = _common([measurement for measurement, _ in pairs])
    kinds = sorted({one.kind for _, work in pairs for one in work})
    distinct = list({_signature(work): (one, work) for one, work in pairs}.values())
    if len(distinct) < NETWORKS_LEAST:
        raise CallerError(f"{len(distinct)} different networks are too few; measure {NETWORKS_LEAST} or more")
    tiled = {tile: [_network(one, work, kinds, tile) for one, work in distinct] for tile in TILES}
    tried = {tile: _held_out(networks, kinds, tile) for tile, networks in tiled.items()}
    tile = min(TILES, key=lambda one: float(np.mean([abs(held.error) for held in tried[one]])))
    costs, ns_per_run = _solved(tiled[tile], kinds)
    return Predictor(
        standing=standing(first.before),
        interpreter=first.interpreter,
        interpreter_version=first.interpreter_version,
        threads=first.spec.threads,
        form=first.form,
        costs=costs,
        tile=tile,
        ns_per_run=ns_per_run,
        least_ns=min(one.latency_ns for one in tiled[tile]),
        most_ns=max(one.latency_ns for one in tiled[tile]),
        held_out=tried[tile],
    )


def _own_work(measurement: Measurement) -> Sequence[HasWork]:
    if not isinstance(measurement.operators, Operators):
        raise CallerError(
            f"package {measurement.package_name}: its operators were not measured; give (measurement, work), or "
            "measure with ProfileSpec(operators=True)"
        )
    return measurement.operators.rows


def _common(measurements: Sequence[Measurement]) -> Measurement:
    """The first of measurements that are alike.

    Raises:
        CallerError: they are not; the message says in what.
    """
    first = measurements[0]
    for name, of in (
        ("interpreters", lambda one: f"{one.interpreter} {one.interpreter_version}"),
        ("forms", lambda one: one.form),
        ("thread counts", lambda one: str(one.spec.threads)),
        ("devices or states of it", lambda one: "; ".join(f"{k} {v}" for k, v in standing(one.before).items())),
    ):
        if len(found := {of(one) for one in measurements}) > 1:
            raise CallerError(f"measurements of several {name} are fitted apart, found: {' | '.join(sorted(found))}")
    return first


def _signature(work: Sequence[HasWork]) -> tuple[tuple[str, int, int], ...]:
    """Networks that are the same to us: one must not be held out while the other teaches."""
    return tuple((one.kind, one.macs or 0, one.bytes_moved or 0) for one in work)


def _network(measurement: Measurement, work: Sequence[HasWork], kinds: Sequence[str], tile: int) -> _Network:
    each = np.zeros((len(work), _UNKNOWNS * len(kinds) + 1))
    for row, one in zip(each, work, strict=True):
        at = _UNKNOWNS * kinds.index(one.kind)
        row[at : at + _UNKNOWNS] = features(one, tile)
    whole = each.sum(axis=0)
    whole[-1] = 1
    latency_ns = summarize([start.samples for start in measurement.starts]).p50_ns
    equations, times = [whole], [latency_ns]
    if isinstance(measurement.operators, Operators) and measurement.operators.rows is work:
        equations += list(each)
        times += [summarize(one.samples).p50_ns for one in measurement.operators.rows]
    name = f"{measurement.package_name} {measurement.package_sha256[:12]}"
    weight = 1 / (latency_ns * math.hypot(min(median_error(measurement.starts), 1.0), _LEAST_ERROR))
    return _Network(name, latency_ns, weight * _LEAST_ERROR, tuple(work), np.array(equations), np.array(times))


def _solved(networks: Sequence[_Network], kinds: Sequence[str]) -> tuple[tuple[Cost, ...], float]:
    """Costs of the kinds, in ns, and what every run takes beside them."""
    matrix = np.concatenate([one.equations * one.weight for one in networks])
    wanted = np.concatenate([one.times_ns * one.weight for one in networks])
    scale = np.sqrt((matrix**2).mean(axis=0))
    scale[scale == 0] = 1
    prior = _PRIOR * np.sqrt(len(matrix)) * np.eye(len(scale))
    found = solve(np.concatenate([matrix / scale, prior]), np.concatenate([wanted, np.zeros(len(scale))])) / scale
    costs = []
    for number, kind in enumerate(kinds):
        seen = [[one for one in network.work if one.kind == kind] for network in networks]
        mine = [one for of_network in seen for one in of_network]
        if mine:
            per_mac, per_loop, per_byte, per_call = found[_UNKNOWNS * number :][:_UNKNOWNS].tolist()
            costs.append(
                Cost(
                    kind=kind,
                    ns_per_mac=per_mac,
                    ns_per_loop=per_loop,
                    ns_per_byte=per_byte,
                    ns_per_call=per_call,
                    macs_most=max(one.macs or 0 for one in mine),
                    bytes_most=max(one.bytes_moved or 0 for one in mine),
                    networks=sum(map(bool, seen)),
                )
            )
    return tuple(costs), float(found[-1])


def _held_out(networks: Sequence[_Network], kinds: Sequence[str], tile: int) -> tuple[HeldOut, ...]:
    found: dict[int, HeldOut] = {}
    folds = min(FOLDS, len(networks))
    for fold in range(folds):
        costs, ns_per_run = _solved([one for at, one in enumerate(networks) if at % folds != fold], kinds)
        for at, one in enumerate(networks):
            if at % folds == fold:
                predicted_ns = estimate_ns(costs, ns_per_run, tile, one.work)
                found[at] = HeldOut(network=one.name, measured_ns=one.latency_ns, predicted_ns=predicted_ns)
    return tuple(found[at] for at in range(len(networks)))
