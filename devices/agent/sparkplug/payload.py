"""The payload of Sparkplug B (3.0, section 6.4): protocol buffers, as much of them as an edge node needs.

Field numbers and data types are those of the specification's schema; other fields are passed over when reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from ferryman.runtime.contracts.errors import DeviceError

INT64, DOUBLE, BOOLEAN, STRING = 4, 10, 11, 12
"""Data types (section 6.4.16)."""
_VALUE_FIELDS = {INT64: "long_value", DOUBLE: "double_value", BOOLEAN: "boolean_value", STRING: "string_value"}
_PAYLOAD = (("timestamp", 1, "UINT64"), ("metrics", 2, "METRIC"), ("seq", 3, "UINT64"))
_METRIC = (
    ("name", 1, "STRING"),
    ("alias", 2, "UINT64"),
    ("timestamp", 3, "UINT64"),
    ("datatype", 4, "UINT32"),
    ("is_historical", 5, "BOOL"),
    ("is_null", 7, "BOOL"),
)
_VALUES = (("long_value", 11, "UINT64"), ("double_value", 13, "DOUBLE"), ("boolean_value", 14, "BOOL"))
_TEXTS = (("string_value", 15, "STRING"),)
Value = float | bool | int | str | None


class Metric(NamedTuple):
    """One value at one time; None is a null."""

    name: str | None
    """None: `alias` says which."""
    alias: int | None
    datatype: int
    timestamp_ms: int
    value: Value
    historical: bool = False


def encode_payload(timestamp_ms: int, metrics: Sequence[Metric], seq: int | None) -> bytes:
    """The message's bytes.

    Args:
        timestamp_ms: when it is sent, Unix epoch.
        metrics: what it tells.
        seq: 0 to 255; None for a death, which has none.

    Raises:
        DeviceError: the extra is not installed.
    """
    payload = _message()(timestamp=timestamp_ms)
    if seq is not None:
        payload.seq = seq
    for one in metrics:
        metric = payload.metrics.add(timestamp=one.timestamp_ms, datatype=one.datatype)
        if one.name is not None:
            metric.name = one.name
        if one.alias is not None:
            metric.alias = one.alias
        if one.historical:
            metric.is_historical = True
        if one.value is None:
            metric.is_null = True
        elif one.datatype == INT64:
            metric.long_value = int(one.value) % (1 << 64)  # two's complement (section 6.4.16)
        else:
            setattr(metric, _VALUE_FIELDS[one.datatype], one.value)
    return bytes(payload.SerializeToString())


def commands(data: bytes) -> dict[str, bool]:
    """The booleans of a command message, by name.

    Raises:
        ValueError: it cannot be read.
    """
    from google.protobuf.message import DecodeError

    payload = _message()()
    try:
        payload.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    return {metric.name: metric.boolean_value for metric in payload.metrics if metric.HasField("boolean_value")}


def check_installed() -> None:
    """See that the extra is there.

    Raises:
        DeviceError: it is not.
    """
    _message()


@cache
def _message() -> Any:  # noqa: ANN401  # a class made at run time
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError as error:
        raise DeviceError(f"Sparkplug needs protobuf ({error}); pip install 'ferryman[sparkplug]'") from error
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="ferryman_sparkplug_b.proto", package="ferryman.sparkplug")
    payload = file.message_type.add(name="Payload")
    metric = payload.nested_type.add(name="Metric")
    metric.oneof_decl.add(name="value")

    def add(to: Any, name: str, number: int, kind: str) -> Any:  # noqa: ANN401  # descriptors
        if kind == "METRIC":
            type_name = ".ferryman.sparkplug.Payload.Metric"
            return to.field.add(
                name=name,
                number=number,
                type=field_type.TYPE_MESSAGE,
                label=field_type.LABEL_REPEATED,
                type_name=type_name,
            )
        kind_number = getattr(field_type, f"TYPE_{kind}")
        return to.field.add(name=name, number=number, type=kind_number, label=field_type.LABEL_OPTIONAL)

    for name, number, kind in _PAYLOAD:
        add(payload, name, number, kind)
    for name, number, kind in _METRIC:
        add(metric, name, number, kind)
    for name, number, kind in (*_VALUES, *_TEXTS):
        add(metric, name, number, kind).oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("ferryman.sparkplug.Payload"))
