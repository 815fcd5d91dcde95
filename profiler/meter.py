"""Meters beside the device, by a short name that a command line and a record can carry.

    mqtt://HOST[:PORT]/TOPIC?kind=tasmota     poll=SECONDS settle=2 user=NAME; kinds: tasmota, shelly, watts
    serial:/dev/ttyUSB0                       baud=115200 unit=W column=1 period=1 settle=1
    adb:SERIAL                                a phone; the serial may be empty
    i2c:BUS/ADDRESS?chip=ina219&shunt=0.1     Ohm; tolerance=0.01 channel=1; chips: ina219, ina226, ina3221
    python:MODULE?anything                    MODULE.open_meter("anything") -> Sampler | Unavailable

No password stands in a name, since names are recorded: a broker's is in the environment, FERRYMAN_METER_PASSWORD.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from urllib.parse import parse_qsl, unquote

from ferryman.profiler.samplers.base import Sampler
from ferryman.profiler.samplers.guard import answer, reason_of, stated, words
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Unavailable

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_SPEC_MAX = 400
OPEN_S = 60.0
"""A meter of someone's own may wait for its first reading, but not forever."""
_CHANNELS = 3
_ADDRESSES = range(0x40, 0x50)
"""These chips' own; another chip would take what is written to it for a command."""
Open = Callable[[], Sampler | Unavailable]


def open_meter(spec: str) -> Sampler | Unavailable:
    """Open it and read it once, or say why it cannot be read.

    Raises:
        CallerError: the name cannot be understood.
    """
    open_it = _parse(spec)
    try:
        return open_it()
    except SensorError as error:
        return Unavailable(reason=str(error))
    except Exception as error:  # noqa: BLE001  # a meter takes no profile with it
        return Unavailable(reason=f"meter {spec}: {words(error)}")


def check_meter(spec: str) -> None:
    """See that a name can be understood, on a machine that need not have the meter.

    Raises:
        CallerError: it cannot.
    """
    _parse(spec)


def _parse(spec: str) -> Open:
    scheme, _, rest = spec.partition(":")
    if scheme not in _SCHEMES or len(spec) > _SPEC_MAX:
        raise CallerError(f"no meter {spec[:60]!r}; a name begins with one of: {', '.join(f'{s}:' for s in _SCHEMES)}")
    place, _, query = rest.partition("?")
    return _SCHEMES[scheme](spec, place, query)


class _Options:
    """Options after the `?`, each taken once; `done` complains of what is left."""

    def __init__(self, spec: str, query: str) -> None:
        self._spec = spec
        try:
            self._found = dict(parse_qsl(query, strict_parsing=True)) if query else {}
        except ValueError as error:
            raise CallerError(f"meter {spec!r}: expected name=value&name=value after `?`") from error
        self._known: list[str] = []

    def text(self, name: str, default: str, among: Mapping[str, object] | None = None) -> str:
        self._known.append(name)
        value = self._found.get(name, default)
        if among is not None and value not in among:
            raise CallerError(f"meter {self._spec!r}: {name} is one of {', '.join(among)}, found {value!r}")
        return value

    def number(self, name: str, default: float | None, low: float, high: float) -> float:
        text = self.text(name, "" if default is None else str(default))
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise CallerError(f"meter {self._spec!r}: {name} is a number from {low:g} to {high:g}, found {text!r}")
        return value

    def done(self) -> None:
        if left := sorted(self._found.keys() - set(self._known)):
            known = ", ".join(self._known)
            raise CallerError(f"meter {self._spec!r}: no option {', '.join(left)}; there are: {known}")


def _mqtt(spec: str, place: str, query: str) -> Open:
    from ferryman.profiler.samplers.mqtt_meter import KINDS, MqttSampler

    host, _, topic = place.removeprefix("//").partition("/")
    host, _, port = host.partition(":")
    if "@" in host or not place.startswith("//") or not host or not topic or not (port or "1883").isdecimal():
        raise CallerError(f"meter {spec!r}: expected mqtt://HOST[:PORT]/TOPIC, and a user's name as the option `user`")
    topic = unquote(topic)
    if set("+#") & set(topic):
        raise CallerError(f"meter {spec!r}: a topic with + or # mixes what several plugs take; name the topic of one")
    options = _Options(spec, query)
    kind = options.text("kind", "tasmota", KINDS)
    poll_s, settle_s = options.number("poll", 0, 0, 60), options.number("settle", 2, 0.1, 60)
    user = options.text("user", "")
    options.done()
    shapes = {"tasmota": r"tele/.+/SENSOR", "shelly": r".+/status/switch:\d+"}
    if poll_s and not re.fullmatch(shapes.get(kind, "(?!)"), topic):
        raise CallerError(f"meter {spec!r}: to be polled, a plug's topic is tele/PLUG/SENSOR or PLUG/status/switch:0")
    if not 0 < int(port or 1883) < 1 << 16 or len(topic.encode()) > _SPEC_MAX or not topic.isprintable():
        raise CallerError(f"meter {spec!r}: no such port or topic")
    return lambda: MqttSampler(host, int(port or 1883), topic, kind, poll_s, settle_s, user)


def _serial(spec: str, place: str, query: str) -> Open:
    from ferryman.profiler.samplers.serial_meter import BAUDS, UNITS, SerialSampler

    if not place.startswith("/dev/"):
        raise CallerError(f"meter {spec!r}: expected serial:/dev/NAME")
    options = _Options(spec, query)
    baud = options.text("baud", "115200", {str(baud): baud for baud in BAUDS})
    unit = options.text("unit", "W", UNITS)
    column, period_s = int(options.number("column", 1, 1, 64)), options.number("period", 1, 0.001, 60)
    settle_s = options.number("settle", 1, 0.1, 60)
    options.done()
    return lambda: SerialSampler(place, int(baud), unit, column, period_s, settle_s)


def _adb(spec: str, place: str, query: str) -> Open:
    from ferryman.profiler.samplers.android import open_phone

    _Options(spec, query).done()
    if place.startswith("-") or not re.fullmatch(r"[\w.:\[\]-]*", place):
        raise CallerError(f"meter {spec!r}: expected adb:SERIAL, as `adb devices` lists it")
    return lambda: open_phone(place)


def _i2c(spec: str, place: str, query: str) -> Open:
    from ferryman.profiler.samplers.ina import CHIPS, SHUNT_TOLERANCE
    from ferryman.profiler.samplers.ina_i2c import open_bus, open_chip

    found = re.fullmatch(r"(\d{1,3})/(0[xX][0-9a-fA-F]{2})", place)
    if found is None or int(found[2], 16) not in _ADDRESSES:
        raise CallerError(f"meter {spec!r}: expected i2c:BUS/ADDRESS, the address from 0x40 to 0x4f")
    options = _Options(spec, query)
    chip = options.text("chip", "", CHIPS)
    shunt_ohm = options.number("shunt", None, 1e-5, 1e3)
    tolerance, channel = options.number("tolerance", SHUNT_TOLERANCE, 0, 1), options.number("channel", 1, 1, _CHANNELS)
    options.done()
    if channel > CHIPS[chip].channels:
        raise CallerError(f"meter {spec!r}: an {chip} has {CHIPS[chip].channels} channel")

    def open_it() -> Sampler:
        bus = open_bus(int(found[1]))
        try:
            address = int(found[2], 16)
            return open_chip(bus, address, chip, shunt_ohm, tolerance, channel=int(channel), place=f"i2c:{place}")
        except SensorError:
            bus.close()
            raise

    return open_it


def _python(spec: str, place: str, query: str) -> Open:
    if not _MODULE.fullmatch(place):
        raise CallerError(f"meter {spec!r}: expected python:MODULE?TEXT")

    def open_it() -> Sampler | Unavailable:
        try:
            return answer(lambda: _made(place, query), "open_meter()", OPEN_S)
        except SensorError as error:
            raise SensorError(f"meter {spec}: {error}") from error

    return open_it


def _made(module: str, text: str) -> Sampler | Unavailable:
    """Runs someone's own code, which may raise anything."""
    made: Sampler | Unavailable = importlib.import_module(module).open_meter(text)
    if isinstance(made, Unavailable):
        return reason_of("", made)
    try:
        stated(made)
    except BaseException:
        with suppress(BaseException):
            made.close()
        raise
    return made


_SCHEMES: dict[str, Callable[[str, str, str], Open]] = {
    "mqtt": _mqtt,
    "serial": _serial,
    "adb": _adb,
    "i2c": _i2c,
    "python": _python,
}
