from __future__ import annotations

import pytest
import torch
from torch import nn

from ferryman.converter.capture import capture
from ferryman.converter.compress.api import compress
from ferryman.converter.lower_binary import lower_binary
from ferryman.converter.source import make_source
from ferryman.runtime.contracts.errors import CallerError, ModelError


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(128, 3),
    )


def batches():
    return [(torch.randn(16, 1, 8, 8), torch.randint(0, 3, (16,))) for _ in range(3)]


def test_what_it_makes_is_what_convert_takes():
    dense = model().train()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    told = []
    made = compress(dense, "binary", loader=batches(), epochs=2, progress=lambda *step: told.append(step))
    assert [decision.decision for decision in made.decisions if decision.path in ("0", "3", "6")] == [
        *("float", "binary", "float")
    ]
    assert [step[:2] for step in told] == [(1, 2), (2, 2)]
    assert len(made.losses) == 2
    assert not made.model.training
    assert all(part.training for part in dense.modules())
    torch.testing.assert_close(dense.state_dict(), before, rtol=0, atol=0)
    _, forms = lower_binary(capture(make_source(made.model, (torch.randn(1, 1, 8, 8),))))
    assert [form.form for form in forms] == ["fp32", "binary", "fp32"]


@pytest.mark.parametrize(
    ("form", "arguments", "match"),
    [
        ("int1", {"loader": []}, "form 'int1' is not known; there are: binary"),
        ("binary", {}, "needs a loader"),
        ("binary", {"loader": [], "epochs": 1}, "loader"),
        ("binary", {"loader": [1], "estimator": "nope"}, "there are"),
        ("binary", {"loader": [1], "keep": ["nothing.like.it"]}, "nothing.like.it"),
    ],
)
def test_what_it_cannot_do_is_the_callers_fault(form, arguments, match):
    with pytest.raises(CallerError, match=match):
        compress(model(), form, **arguments)


def test_layers_behind_a_relu_that_cannot_be_replaced_stay_in_float():
    """Their signs would all be +1: the model would be ruined without a word."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten())
            self.middle, self.head = nn.Linear(128, 16), nn.Linear(16, 3)

        def forward(self, x):
            return self.head(nn.functional.relu(self.middle(self.features(x))))

    torch.manual_seed(0)
    made = compress(Net(), "binary", loader=batches(), epochs=1)
    found = {decision.path: (decision.decision, decision.reason) for decision in made.decisions}
    assert found["features.2"][0] == "binary"
    assert found["middle"][0] == "float"
    assert "no negative inputs" in found["middle"][1]
    assert type(made.model.middle) is nn.Linear


def test_a_model_of_which_nothing_can_become_binary_is_refused_before_it_is_trained():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x):
            x = nn.functional.relu(self.one(x.flatten(1)))
            return self.three(nn.functional.relu(self.two(x)))

    told = []
    with pytest.raises(ModelError, match=r"can become binary: .*no negative inputs.*nn\.ReLU"):
        compress(Net(), "binary", loader=batches(), epochs=1, progress=lambda *step: told.append(step))
    assert not told


def test_a_subclass_of_sequential_is_one_too():
    class Mlp(nn.Sequential):
        pass

    torch.manual_seed(0)
    dense = Mlp(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    made = compress(dense, "binary", loader=batches(), epochs=1)
    assert [d.decision for d in made.decisions if d.path in ("1", "3", "5")] == ["float", "binary", "float"]
