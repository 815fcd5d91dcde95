"""A measurement to store, with the fields a test cares about."""

from __future__ import annotations

from ferryman.runtime.contracts.measurement import Conditions, Measurement, MemoryPhases, ProfileSpec
from ferryman.runtime.contracts.record import Unavailable

NO = Unavailable(reason="not in this test")


def measurement(package_name: str = "digits", package_sha256: str = "00", started_at_ns: int = 1) -> Measurement:
    conditions = Conditions(
        device_model=NO,
        cpu_model=NO,
        cpu_count=1,
        isa=(),
        governor=NO,
        clocks_mhz=NO,
        temperatures_c=NO,
        load_1m=NO,
        memory_total_bytes=1,
        memory_available_bytes=1,
        kernel="k",
        machine="m",
        affinity=(0,),
        versions={},
    )
    return Measurement(
        package_name=package_name,
        package_sha256=package_sha256,
        variant="v",
        form="fp32",
        runtime="tflite",
        interpreter="i",
        interpreter_version="1",
        artifact_bytes=1,
        input_shapes=((1, 4),),
        spec=ProfileSpec(),
        started_at_ns=started_at_ns,
        import_ns=1,
        load_ns=1,
        first_run_ns=1,
        warmup_ns=(1,),
        samples_ns=(3, 1, 2),
        memory=MemoryPhases(start=NO, loaded=NO, first_run=NO, steady=NO),
        energy=NO,
        before=conditions,
        after=conditions,
    )
