from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from ferryman.converter.compress.binary import binarize, fine_tune
from ferryman.converter.compress.binary_modules import LATENT_LIMIT, BinaryConv2d, BinaryLayer, BinaryLinear
from ferryman.converter.compress.estimators import ReSte
from ferryman.converter.compress.training import recalibrate_batch_norm
from ferryman.runtime.contracts.errors import CallerError
from tests.e2e.digits import Batches, accuracy
from tests.zoo.binary import train_digits_binary


def net(*middle):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), *middle, nn.Flatten(), nn.Linear(144, 10))


def small():
    """A quick one for the digits."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 1, 1),
        nn.BatchNorm2d(16),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def some_digits():
    return list(Batches(64))[:4]


def test_a_binary_layer_holds_the_dense_weights_and_arguments():
    dense = net(nn.Conv2d(4, 8, (3, 2), (2, 1), (1, 0), (1, 2), groups=2), nn.Linear(4, 4))
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    binary, _ = binarize(dense)
    made, old = binary[2], dense[2]

    assert isinstance(made, BinaryConv2d)
    assert torch.equal(made.weight, old.weight)
    assert torch.equal(made.bias, old.bias)
    assert torch.allclose(made.scale, old.weight.abs().mean((1, 2, 3)))
    assert (made.kernel_size, made.stride, made.dilation, made.groups) == ((3, 2), (2, 1), (1, 2), 2)
    assert made(torch.randn(1, 4, 9, 9)).shape == old(torch.randn(1, 4, 9, 9)).shape
    assert isinstance(dense[2], nn.Conv2d)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


@pytest.mark.parametrize("padding", ["same", "valid", 1, (0, 2)])
def test_padding_means_what_it_meant(padding):
    dense = net(nn.Conv2d(4, 4, 3, padding=padding))
    binary, _ = binarize(dense)
    x = torch.randn(1, 4, 7, 7)

    assert binary[2](x).shape == dense[2](x).shape


def test_rank_is_cut_to_what_a_layer_can_have():
    binary, _ = binarize(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(3, 8), nn.Linear(8, 8)), rank=4)

    assert [part.rank for part in binary.modules() if isinstance(part, BinaryLinear)] == [3, 3]
    with pytest.raises(CallerError, match="rank is 0 or more"):
        binarize(nn.Linear(2, 2), rank=-1)


def test_each_layer_has_an_estimator_of_its_own():
    binary, _ = binarize(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), estimator=ReSte(o_end=2))

    assert binary[1].estimator is not binary[2].estimator
    assert binary[1].estimator.o_end == 2


def test_a_module_used_twice_is_one_binary_module():
    shared = nn.Linear(4, 4)
    binary, report = binarize(nn.Sequential(nn.Linear(4, 4), shared, nn.Tanh(), shared, nn.Linear(4, 4)))

    assert isinstance(binary[1], BinaryLinear)
    assert binary[1] is binary[3]
    assert [found.decision for found in report] == ["float", "binary", "float"]


def test_relus_before_binary_layers_become_hardtanh_in_sequences():
    dense = net(
        nn.ReLU(),  # before a binary layer, a pooling between
        nn.MaxPool2d(1),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU6()),  # before the next one, outside
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),  # before a batch norm, which makes negative numbers
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),  # before the float head
    )
    images = torch.randn(16, 1, 8, 8)
    recalibrate_batch_norm(dense, [(images, torch.zeros(16))])
    binary, report = binarize(dense, example=images)
    replaced = [(found.path, found.kind, found.reason) for found in report if found.decision == "replaced"]

    assert replaced == [
        ("2", "ReLU", "by Hardtanh, so that 4.0 sees signs"),
        ("4.2", "ReLU6", "by Hardtanh, so that 5 sees signs"),
    ]
    assert [type(binary[index]) for index in (2, 6, 9)] == [nn.Hardtanh, nn.ReLU, nn.ReLU]
    assert isinstance(binary[4][2], nn.Hardtanh)
    assert {found.reason for found in report if found.decision == "binary"} == {"the default"}


def test_real_activations_keep_their_relus():
    binary, report = binarize(net(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)), activations="real")

    assert isinstance(binary[2], nn.ReLU)
    assert binary[3].activations == "real"
    assert "replaced" not in {found.decision for found in report}


def tuned(seed=0, **options):
    torch.manual_seed(seed)
    model, _ = binarize(small())
    return fine_tune(model, some_digits(), **{"epochs": 2, "lr": 1e-2} | options)


def test_fine_tuning_lowers_the_loss_and_tells_of_it():
    told = []
    found = tuned(epochs=4, progress=lambda *values: told.append(values))

    assert len(found.losses) == 4
    assert found.losses[-1] < 0.7 * found.losses[0]
    assert told == [(epoch + 1, 4, loss) for epoch, loss in enumerate(found.losses)]
    assert not any(part.training for part in found.model.modules())


def test_fine_tuning_is_the_same_every_time():
    first, second = tuned(), tuned()

    assert first.losses == second.losses
    assert all(map(torch.equal, first.model.state_dict().values(), second.model.state_dict().values()))


def test_latent_weights_and_scales_stay_where_they_may_be():
    layers = [part for part in tuned(lr=0.5).model.modules() if isinstance(part, BinaryLayer)]

    assert layers
    for layer in layers:
        assert float(layer.weight.detach().abs().max()) == LATENT_LIMIT
        assert (layer.scale > 0).all()


def test_the_estimators_schedule_follows_the_epochs():
    seen = []
    torch.manual_seed(0)
    model, _ = binarize(small())
    layer = next(part for part in model.modules() if isinstance(part, BinaryLayer))
    fine_tune(model, some_digits()[:1], epochs=4, lr=1e-3, progress=lambda *_: seen.append(layer.estimator.o))

    assert seen == [1, 1.5, 2, 2.5]


def test_a_teacher_changes_what_is_learnt_and_not_itself():
    torch.manual_seed(1)
    teacher = small()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    found = tuned(teacher=teacher)

    assert found.losses != tuned().losses
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_batch_norms_know_the_loaders_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    batches = [(torch.randn(16, 3) * 2 + 5, torch.zeros(16)) for _ in range(4)]
    recalibrate_batch_norm(model, batches)
    values = torch.stack([batch for batch, _ in batches])

    assert torch.allclose(model[1].running_mean, values.mean((0, 1)), atol=1e-5)
    assert torch.allclose(model[1].running_var, values.var(1).mean(0), atol=1e-5)
    assert model[1].momentum == 0.1
    assert not model[1].training


@pytest.mark.parametrize(
    ("loader", "epochs", "message"),
    [
        ([], 1, "the loader gives no batches"),
        (iter(()), 1, "only once"),
        ([], 0, "epochs is a whole number, 1 or more, found 0"),
        ([], "2", "epochs is a whole number, 1 or more, found '2'"),
    ],
)
def test_what_cannot_be_trained_on_is_the_callers_fault(loader, epochs, message):
    with pytest.raises(CallerError, match=message):
        fine_tune(nn.Linear(2, 2), loader, epochs=epochs, lr=1e-3)


@pytest.mark.parametrize("lr", [0, -1e-3, float("nan"), float("inf"), "fast"])
def test_a_learning_rate_is_above_0(lr):
    with pytest.raises(CallerError, match="lr is a finite number above 0, found"):
        fine_tune(nn.Linear(2, 2), [], epochs=1, lr=lr)


@pytest.mark.parametrize("model", [nn.Flatten(), nn.Linear(2, 2).requires_grad_(requires_grad=False)])
def test_a_model_needs_weights_to_train(model):
    with pytest.raises(CallerError, match="no weights to train"):
        fine_tune(model, [], epochs=1, lr=1e-3)


class Pair(nn.Module):
    """Gives two outputs."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x):
        return self.inner(x), x


GOOD = (torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (nn.Linear(2, 2), {"x": GOOD[0], "y": GOOD[1]}, "two tensors; batch 2 is dict"),
        (nn.Linear(2, 2), [GOOD[0], "y"], r"two tensors; batch 2 is \(Tensor, str\)"),
        (nn.Linear(2, 2), (GOOD[0], torch.full((4,), 7)), "batch 2 cannot be trained on: IndexError: Target 7"),
        (nn.Linear(2, 2), (GOOD[0], torch.zeros(4)), "batch 2 cannot be trained on: RuntimeError: expected"),
        (nn.Linear(2, 2), (torch.randn(4, 3), GOOD[1]), "batch 2 cannot be trained on: RuntimeError: mat1"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), (GOOD[0][:1], GOOD[1][:1]), "ValueError: .*drop_last=True"),
        (nn.Linear(2, 2), (torch.full((4, 2), float("nan")), GOOD[1]), "the loss of batch 2 is nan; .* smaller lr"),
    ],
)
def test_a_batch_that_cannot_be_trained_on_is_named(model, batch, message):
    with pytest.raises(CallerError, match=message):
        fine_tune(model, [GOOD, batch], epochs=1, lr=1e-3)


def test_a_model_with_two_outputs_is_the_callers_fault():
    with pytest.raises(CallerError, match=r"batch 1 cannot be trained on: TypeError: .*tuple"):
        fine_tune(Pair(), [GOOD], epochs=1, lr=1e-3)


def test_weights_that_are_not_finite_are_found_behind_signs_too():
    model, _ = binarize(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2)))
    x = GOOD[0].clone()
    x[1, 1] = float("inf")  # NaN after the first layer, -1 after the sign

    with pytest.raises(CallerError, match=r"after epoch 1, .* is not finite; .*loader's batches"):
        fine_tune(model, [(x, GOOD[1])], epochs=1, lr=1e-3)


def test_fine_tuning_works_without_gradients_around_it():
    with torch.no_grad():
        found = tuned()
        assert not torch.is_grad_enabled()

    assert found.losses == tuned().losses


def test_a_teacher_stays_in_its_mode():
    teacher = small().train()
    teacher[1].eval()
    modes = [part.training for part in teacher.modules()]
    tuned(teacher=teacher)
    assert [part.training for part in teacher.modules()] == modes

    with pytest.raises(CallerError, match="batch 1"):
        fine_tune(nn.Linear(2, 2), [(GOOD[0], GOOD[0][:2])], epochs=1, lr=1e-3, teacher=teacher)
    assert [part.training for part in teacher.modules()] == modes


def pruned(layer):
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("change", [pruned, nn.utils.weight_norm])
def test_a_model_that_cannot_be_copied_is_the_callers_fault(change):
    model = nn.Sequential(nn.Linear(4, 4), change(nn.Linear(4, 4)), nn.Linear(4, 4))
    model(torch.randn(2, 4))

    with pytest.raises(CallerError, match=r"cannot be copied: RuntimeError: .*prune\.remove.*remove_weight_norm"):
        binarize(model)


def test_a_relu_with_hooks_stays():
    dense = net(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    dense[2].register_forward_hook(lambda *_: None)
    binary, report = binarize(dense)

    assert isinstance(binary[2], nn.ReLU)
    assert isinstance(binary[3], BinaryConv2d)
    assert "replaced" not in {found.decision for found in report}


@pytest.mark.slow
def test_the_binary_digits_net_is_nearly_as_good_as_the_float_one():
    trained = train_digits_binary()

    assert trained.dense_accuracy >= 0.97
    assert trained.binary_accuracy >= 0.95
    assert accuracy(trained.binary) == trained.binary_accuracy
