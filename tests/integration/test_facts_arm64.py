"""Facts of a Debian arm64 root under qemu: through its bare shell, and by ferryman in it; both tell the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from ferryman.devices.fleet.facts.bare import bare_command, parse_bare
from ferryman.runtime.contracts.facts import Core, DeviceFacts
from ferryman.runtime.contracts.record import decode
from tests.support import pi_device
from tests.support.device_root import unpacked_root, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not("arm64")), reason=why_not("arm64") or "it can run")]


@pytest.mark.parametrize(("cpu", "kind"), [("cortex-a72", "Cortex-A72"), ("cortex-a53", "Cortex-A53")])
def test_a_bare_pi_tells_by_its_shell(tmp_path, cpu, kind):
    store = Path("/var/lib/ferryman")
    argv, mark = bare_command(store)
    with unpacked_root("arm64", tmp_path, cpu=cpu) as root:
        done = root.run(list(argv), timeout_s=60)
    facts = parse_bare(done.stdout.encode(), mark, store, "none")
    assert facts.machine == "aarch64"
    assert facts.userland_bits == 64
    assert isinstance(facts.cores, tuple)
    assert [core.kind for core in facts.cores] == [kind]
    assert isinstance(facts.cores[0], Core)
    assert "asimd" in facts.isa
    assert "asimddp" not in facts.isa
    assert facts.os == "Debian GNU/Linux 12 (bookworm)"
    assert facts.libc == "glibc 2.36"
    assert facts.python.startswith("3.11")
    assert isinstance(facts.model, str)
    assert "Raspberry Pi" in facts.model
    assert isinstance(facts.free_bytes, int)


@pytest.mark.skipif(bool(pi_device.why_not()), reason=pi_device.why_not() or "it can run")
def test_ferryman_there_tells_what_the_shell_tells_and_more(tmp_path):
    store = Path("/var/lib/ferryman")
    argv, mark = bare_command(store)
    with unpacked_root("arm64", tmp_path, packed=pi_device.packed_device()) as root:
        own = root.run([str(pi_device.COMMAND), "facts", "--json", "--root", str(store)], timeout_s=120)
        shell = root.run(list(argv), timeout_s=60)
    facts = decode(own.stdout.encode(), DeviceFacts)
    bare = parse_bare(shell.stdout.encode(), mark, store, "none")
    for field in ("model", "soc", "machine", "userland_bits", "cores", "isa", "memory_bytes", "os", "kernel", "libc"):
        assert getattr(facts, field) == getattr(bare, field), field
    assert "qemu" in facts.emulated
    assert facts.kernels == "neon"
    assert {"executorch", "ai-edge-litert"} <= {one.name for one in facts.interpreters}
