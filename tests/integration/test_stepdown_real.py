"""A nested network on a device: fetched in part, picked by measurement, stepped down under heat, all in one process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ferryman.converter.api import convert
from ferryman.converter.nested.network import nest
from ferryman.devices.agent.ready import Readings
from ferryman.devices.agent.serving import Serving
from ferryman.devices.agent.stepdown import StepDown, StepLimits
from ferryman.runtime.contracts.messages import InferRequest
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.tensor import to_tensors
from ferryman.runtime.slots import SlotStore
from ferryman.runtime.staged import install_staged
from tests.support.packages import stage

ROWS = torch.randn(2, 512, generator=torch.Generator().manual_seed(1))
NONE = Unavailable(reason="no sensor")
COOL = Readings(power="mains", battery=NONE, hottest_c=40.0, throttled=(), idle_s=0.0, minute=0)
HELD = ("executorch-fp32-100", "executorch-fp32-25")


@pytest.mark.slow
def test_a_nested_package_of_which_a_part_is_installed_steps_down_in_one_process(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512)).eval()
    nested = nest(network, "nested-25-50-100", example=ROWS)
    made = convert(nested.variants(), ROWS, to=("executorch",), output=tmp_path, name="nested")
    store = SlotStore(tmp_path / "root")
    manifest, sha256 = stage(made.path, store.root / "download" / "n", HELD)
    options = {"package_sha256": sha256, "release": "nested/1", "variants": HELD, "pick": "largest-1000ms-2000mb"}
    installed = install_staged(store, store.root / "download" / "n", manifest, **options)
    assert installed.active.variant == "executorch-fp32-100"
    assert [(one.variant, one.share) for one in installed.active.measured] == [
        ("executorch-fp32-100", 1.0),
        ("executorch-fp32-25", pytest.approx(0.25)),
    ]
    assert {path.name for path in (store.directory("a") / "golden").iterdir()} == {"0.msgpack", "1.msgpack", "25"}

    now = [0.0]
    serving = Serving(store, steps=StepDown(StepLimits(), lambda: now[0]))

    def ask(level, **names):
        reply = serving.infer(InferRequest(inputs=to_tensors([ROWS.numpy()]), **names), 30.0)
        assert reply.variant == f"executorch-fp32-{level}"
        expected = nested.variant(level)(ROWS).detach().numpy()
        np.testing.assert_allclose(reply.outputs[0].to_array(), expected, atol=1e-4)
        (session,) = serving._sessions.values()
        return session._process.pid

    try:
        processes = {ask(100)}
        assert serving.adapt(COOL._replace(throttled=("thermal",)))
        assert "executorch-fp32-25 on executorch, a smaller one while the clock is held down" in serving.answers
        processes |= {ask(25), ask(100, variant="executorch-fp32-100"), ask(25)}
        assert not serving.adapt(COOL)
        now[0] += 120
        assert serving.adapt(COOL)
        processes |= {ask(100)}
        assert len(processes) == 1  # its weights are in memory once
    finally:
        serving.close()
