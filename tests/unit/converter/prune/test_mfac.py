"""The inverse Hessian is that of the matrix, and its scores are those of the loss."""

from __future__ import annotations

import pytest
import torch

from ferryman.converter.prune.criteria import Context
from ferryman.converter.prune.graph import find_groups
from ferryman.converter.prune.mfac import InverseHessian, Mfac
from ferryman.converter.prune.structured import prune
from ferryman.runtime.contracts.errors import CallerError
from tests.unit.converter.prune.nets import ResNet, accuracy, digits, image, trained


def test_the_recursion_gives_the_inverse():
    torch.manual_seed(0)
    gradients = torch.randn(12, 7, dtype=torch.float64)
    wanted = torch.linalg.inv(0.3 * torch.eye(7) + gradients.T @ gradients / 12)
    found = InverseHessian(gradients, 0.3)
    torch.testing.assert_close(found.diagonal(), wanted.diagonal())
    for vector in (torch.randn(7, dtype=torch.float64), gradients[3]):
        torch.testing.assert_close(found.times(vector), wanted @ vector)
    for row, column in ((0, 0), (2, 5), (6, 1)):
        assert found.element(row, column) == pytest.approx(float(wanted[row, column]))


@pytest.mark.parametrize(("shape", "damp"), [((0, 3), 1.0), ((3,), 1.0), ((2, 3), 0.0)])
def test_what_has_no_inverse_is_refused(shape, damp):
    with pytest.raises(CallerError, match="M-FAC takes gradients"):
        InverseHessian(torch.zeros(shape), damp)


def test_a_unit_that_others_can_stand_for_is_worth_less():
    """Two units that do the same are each worth little, as the other's gate makes up for it."""
    torch.manual_seed(0)
    net = trained(ResNet(8), epochs=2)
    with torch.no_grad():
        block = net.blocks[0]
        for value in (block.conv1.weight, *block.norm1.state_dict().values()):
            if value.dim():
                value[1] = value[0]
        block.conv2.weight[:, 1] = block.conv2.weight[:, 0]
    group = next(group for group in find_groups(net, image(1)).groups if group.layers[0] == "blocks.0.conv1")
    (score,) = Mfac().score(Context(net, [group], image(1), digits()[0][:3]))
    assert float(score[0]) == pytest.approx(float(score[1]), rel=1e-3)
    assert {*score.argsort()[:2].tolist()} == {0, 1}


def test_pruning_by_it_keeps_what_matters():
    net = trained(ResNet(), epochs=4)
    done = prune(net, "pruned-60flops-mfac", example=image(1), loader=digits()[0], epochs=0)
    assert done.losses == ()
    assert accuracy(done.model) > 0.8
