"""An edge node against a real broker, read by another implementation of Sparkplug (pysparkplug) where there is one."""

from __future__ import annotations

import queue
import time

import pytest

from ferryman.devices.agent.sparkplug import node as node_module
from ferryman.devices.agent.sparkplug.node import ALIASES, FILE, HISTORY_MAX, SparkplugNode, check_group
from ferryman.devices.agent.sparkplug.payload import BOOLEAN, INT64, Metric, _message, encode_payload
from ferryman.devices.mqtt import Link, Message
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.telemetry import METRICS, Sample
from tests.support.mosquitto import Mosquitto

pytest.importorskip("google.protobuf", reason="the extra `sparkplug` is not installed")


def sample(**values):
    return Sample(period_s=60, values=values, package_sha256="ab12")


class Host:
    """Hears the group, and may command."""

    def __init__(self, broker, name="host"):
        self.heard = queue.Queue()
        self.link = Link(broker, name)
        self.link.subscribe("spBv1.0/plant/#", self.heard.put)
        self.link.start()
        self.link.wait_ready(60)

    def next(self, kind):
        """The next message, which must be of a kind."""
        delivery = self.heard.get(timeout=60)
        assert delivery.topic == f"spBv1.0/plant/{kind}/pi"
        assert not delivery.retained
        return _message().FromString(delivery.payload)

    def command(self, payload, **options):
        self.link.publish(Message(topic="spBv1.0/plant/NCMD/pi", payload=payload, **options))
        assert self.heard.get(timeout=60).topic.endswith("NCMD/pi")

    def close(self):
        self.link.stop()


@pytest.fixture
def broker(tmp_path):
    with Mosquitto(tmp_path) as running:
        yield running.config


@pytest.fixture
def host(broker):
    one = Host(broker)
    yield one
    one.close()


@pytest.fixture
def node(broker, tmp_path):
    one = SparkplugNode(broker, "plant", "pi", tmp_path)
    yield one
    one.stop()


def values(payload):
    return {
        metric.name or metric.alias: None if metric.is_null else getattr(metric, metric.WhichOneof("value"))
        for metric in payload.metrics
    }


def ready(node):
    node.start()
    node._link.wait_ready(60)


def test_birth_tells_every_metric_its_type_and_number(node, host):
    ready(node)
    birth = host.next("NBIRTH")
    assert birth.seq == 0
    assert abs(birth.timestamp - time.time() * 1000) < 600_000
    found = {metric.name: metric for metric in birth.metrics}
    assert set(found) == {*METRICS, "package_sha256", "bdSeq", "Node Control/Rebirth"}
    assert (found["bdSeq"].long_value, found["bdSeq"].datatype) == (0, INT64)
    assert (found["Node Control/Rebirth"].boolean_value, found["Node Control/Rebirth"].datatype) == (False, BOOLEAN)
    assert not found["bdSeq"].HasField("alias")
    assert not found["Node Control/Rebirth"].HasField("alias")
    aliases = [metric.alias for name, metric in found.items() if name in ALIASES]
    assert len(set(aliases)) == len(ALIASES)
    assert all(metric.timestamp and metric.datatype for metric in birth.metrics)


def test_data_tell_what_changed_by_number(node, host):
    ready(node)
    host.next("NBIRTH")
    node.tell(sample(temperature_c=60.5, throttled=0))
    node.tell(sample(temperature_c=60.5, throttled=1))
    node.tell(sample(temperature_c=60.5, throttled=1))  # nothing to tell
    node.tell(sample(throttled=1))
    first, second, third = (host.next("NDATA") for _ in range(3))
    assert [one.seq for one in (first, second, third)] == [1, 2, 3]
    assert values(first) == {
        ALIASES["temperature_c"]: 60.5,
        ALIASES["throttled"]: False,
        ALIASES["package_sha256"]: "ab12",
    }
    assert values(second) == {ALIASES["throttled"]: True}
    assert values(third) == {ALIASES["temperature_c"]: None}
    assert not any(metric.is_historical for metric in first.metrics)


def test_numbers_of_messages_begin_again_after_255(node, host):
    ready(node)
    host.next("NBIRTH")
    for n in range(1, 259):
        node.tell(sample(inferences=n))
        assert host.next("NDATA").seq == n % 256


def test_a_rebirth_that_is_asked_for_keeps_the_connections_number_and_tells_the_present(node, host):
    ready(node)
    first = host.next("NBIRTH")
    node.tell(sample(temperature_c=60.5))
    host.next("NDATA")
    host.command((node_module.Path(__file__).parents[4] / "golden/sparkplug/ncmd.bin").read_bytes())
    again = host.next("NBIRTH")
    assert again.seq == 0
    assert values(again)["bdSeq"] == values(first)["bdSeq"]
    assert values(again)["temperature_c"] == 60.5
    node.tell(sample(temperature_c=61))
    assert host.next("NDATA").seq == 1


def test_other_commands_and_garbage_do_nothing(node, host, caplog):
    ready(node)
    host.next("NBIRTH")
    no = encode_payload(1, [Metric("Node Control/Rebirth", None, BOOLEAN, 1, value=False)], None)
    other = encode_payload(1, [Metric("Node Control/Reboot", None, BOOLEAN, 1, value=True)], None)
    for payload in (no, other, b"\xff\xff", b"", bytes(node_module._COMMAND_MAX_BYTES + 1)):
        host.command(payload)
    node.tell(sample(inferences=1))
    assert host.next("NDATA").seq == 1
    assert "cannot be read" in caplog.text
    assert "too large" in caplog.text


def test_a_death_has_the_number_of_its_birth_whether_wanted_or_not(broker, host, tmp_path):
    for end, number in (("break", 0), ("stop", 2)):
        one = SparkplugNode(broker, "plant", "pi", tmp_path)
        ready(one)
        birth = host.next("NBIRTH")
        assert values(birth)["bdSeq"] == number
        if end == "break":
            one._link._connection._client.socket().close()
            found = [host.heard.get(timeout=60) for _ in range(2)]
            assert [one.topic.split("/")[2] for one in found] == ["NDEATH", "NBIRTH"]
            death, next_birth = (_message().FromString(one.payload) for one in found)
            assert values(next_birth)["bdSeq"] == 1
            one.stop()
            host.next("NDEATH")
        else:
            one.stop()
            death = host.next("NDEATH")
        assert values(death) == {"bdSeq": number}
        assert not death.HasField("seq")


def test_numbers_of_connections_begin_again_after_255(broker, host, tmp_path):
    (tmp_path / FILE).write_text('{"bdseq":255}')
    one = SparkplugNode(broker, "plant", "pi", tmp_path)
    ready(one)
    assert values(host.next("NBIRTH"))["bdSeq"] == 0
    one.stop()


def test_what_was_taken_without_a_connection_is_history(node, host):
    for n in range(HISTORY_MAX + 30):
        node.tell(sample(inferences=n, temperature_c=50))
    node.tell(sample(inferences=7))
    ready(node)
    birth = host.next("NBIRTH")
    assert values(birth)["inferences"] == 7
    assert values(birth)["temperature_c"] is None
    told = []
    while len(told) < HISTORY_MAX:
        data = host.next("NDATA")
        assert all(metric.is_historical and not metric.is_null for metric in data.metrics)
        told += [metric.double_value for metric in data.metrics if metric.alias == ALIASES["inferences"]]
    assert told == [*map(float, range(31, HISTORY_MAX + 30)), 7.0]
    node.tell(sample(inferences=8))
    assert not any(metric.is_historical for metric in host.next("NDATA").metrics)


def test_a_damaged_count_begins_anew(broker, tmp_path, caplog):
    (tmp_path / FILE).write_text("{")
    assert SparkplugNode(broker, "plant", "pi", tmp_path)._bdseq == -1
    assert "counting from 0" in caplog.text


@pytest.mark.parametrize("group", ["", "a/b", "+", "#", "a\0"])
def test_a_group_that_cannot_stand_in_a_topic_is_the_callers_fault(group):
    with pytest.raises(CallerError, match="--sparkplug"):
        check_group(group)


def test_another_implementation_reads_it(node, host):
    pysparkplug = pytest.importorskip("pysparkplug", reason="pip install --no-deps pysparkplug")
    node.tell(sample(temperature_c=59))
    ready(node)
    birth = pysparkplug.NBirth.decode(host.heard.get(timeout=60).payload)
    history = pysparkplug.NData.decode(host.heard.get(timeout=60).payload, birth=birth)
    node.tell(sample(temperature_c=60.5))
    data = pysparkplug.NData.decode(host.heard.get(timeout=60).payload, birth=birth)
    assert birth.seq == 0
    assert {metric.name for metric in birth.metrics} >= set(METRICS)
    assert next((m.name, m.value, m.is_historical) for m in history.metrics) == ("temperature_c", 59.0, True)
    assert [(m.name, m.value, m.is_historical) for m in data.metrics] == [("temperature_c", 60.5, False)]
    node.stop()
    death = pysparkplug.NDeath.decode(host.heard.get(timeout=60).payload)
    assert death.bd_seq_metric.value == 0
