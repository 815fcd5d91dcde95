from __future__ import annotations

import pytest
from msgspec.structs import replace

from ferryman.devices.fleet.facts.package_advice import advise_package, package_lines
from ferryman.profiler.facts import facts_of
from ferryman.runtime.checks import lacking, on_disk_bytes
from ferryman.runtime.contracts.errors import PackageError
from ferryman.runtime.contracts.facts import Interpreter
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.package import open_package
from tests.support.boards import PI_4
from tests.support.packages import write_tiny_package
from tests.unit.profiler.test_facts import TOLD
from tests.unit.profiler.trees import write_tree

LITERT = Interpreter(name="ai-edge-litert", version="2.3.0")


@pytest.fixture
def package(tmp_path):
    return write_tiny_package(tmp_path / "new.ferry")


@pytest.fixture
def manifest(package):
    with open_package(package) as opened:
        return opened.manifest


@pytest.fixture
def facts(tmp_path):
    found = facts_of(write_tree(tmp_path / "pi", PI_4), TOLD)
    return replace(found, interpreters=(*found.interpreters, LITERT))


def needing(manifest, **requires):
    variants = tuple(replace(one, requires=replace(one.requires, **requires)) for one in manifest.variants)
    return replace(manifest, variants=variants)


def lines(manifest, facts, size_bytes=1000):
    return list(package_lines(manifest, size_bytes, facts))


def test_what_would_run_is_told(package, facts):
    (line,) = advise_package(package, facts)
    assert line.level == "ok"
    assert line.says.endswith("would run")


def test_a_damaged_package_is_at_fault(package, facts):
    package.write_bytes(package.read_bytes()[:-10])
    with pytest.raises(PackageError):
        advise_package(package, facts)


@pytest.mark.parametrize(
    ("requires", "because"),
    [
        ({"isa": ("asimddp",)}, "it needs the instruction sets asimddp, which this processor lacks"),
        ({"operators": 99}, "it needs ferryman's operators of version 99, found version 4"),
        ({"interpreters": {"executorch": "9.0"}}, "it needs one of executorch >= 9.0 (pip install it)"),
    ],
)
def test_what_would_be_refused_says_why_as_the_install_does(manifest, facts, requires, because):
    *refused, last = lines(needing(manifest, **requires), facts)
    assert all(because in one.because for one in refused)
    assert (last.level, last.says) == ("problem", f"{manifest.name} would be refused")


def test_the_install_and_the_report_ask_the_same_function(manifest, facts):
    for variant in needing(manifest, isa=("sve",)).variants:
        versions = {one.name: one.version for one in facts.interpreters}
        assert lacking(variant, frozenset(facts.isa), 4, versions) == lacking(variant, frozenset(facts.isa))


def test_memory_that_is_short_is_a_problem(manifest, facts):
    first, *_ = lines(needing(manifest, memory_estimate_bytes=10**12), facts)
    assert (first.level, "out of memory" in first.says) == ("problem", True)
    unknown = replace(facts, memory_available_bytes=Unavailable(reason="x"))
    assert lines(needing(manifest, memory_estimate_bytes=10**12), unknown)[0].level == "ok"


def test_room_is_counted_as_the_upload_counts_it(manifest, facts):
    size = 10**6
    need = 2 * on_disk_bytes(size, 1)
    assert [one.level for one in lines(manifest, replace(facts, free_bytes=need), size)] == ["ok"]
    assert lines(manifest, replace(facts, free_bytes=need - 1), size)[-1].level == "problem"


def test_without_ferryman_nothing_can_be_installed_yet(manifest, facts):
    (line,) = lines(manifest, replace(facts, ferryman=Unavailable(reason="none there")))
    assert (line.level, line.because) == ("problem", "no ferryman: none there")


def test_operators_that_nobody_told_of_are_not_taken_for_there(manifest, facts):
    found = lines(needing(manifest, operators=4), replace(facts, operators=Unavailable(reason="old")))
    assert found[0].says == "whether its operators are there is not known"
    assert found[-1].level == "problem"
