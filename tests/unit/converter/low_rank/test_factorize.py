"""Low ranks from a name: budgets held, models whole, rows that say what was done."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.api import compress
from ferryman.converter.low_rank import timing
from ferryman.converter.low_rank.factorize import factorize
from ferryman.converter.prune.budget import count
from ferryman.converter.prune.heads import HeadAttention
from ferryman.runtime.contracts.errors import CallerError, ModelError
from tests.unit.converter.low_rank.nets import Convs, Peeking, Tied, Twice, clock, encoder, never
from tests.unit.converter.prune.nets import ResNet, Vit, accuracy, digits, image, trained


def convs():
    torch.manual_seed(1)
    return Convs(16).eval(), (torch.randn(2, 1, 12, 12),)


@pytest.mark.parametrize("name", ["lowrank-60flops", "lowrank-60bytes", "lowrank-80energy", "lowrank-10db"])
@pytest.mark.parametrize("make", [convs, lambda: (ResNet(16).eval(), image()), lambda: (Vit().eval(), image())])
def test_budgets_are_held_and_the_model_runs(make, name):
    net, example = make()
    before = copy.deepcopy(net.state_dict())
    done = factorize(net, name, example=example, timer=clock)
    assert all(torch.equal(one, before[key]) for key, one in net.state_dict().items())
    assert done.model(*example).shape == net(*example).shape
    assert not any(part.training for part in done.model.modules())
    assert (done.after.macs, done.after.nbytes) == (count(done.model, example).macs, count(done.model, example).nbytes)
    rows = [row for row in done.decisions if row.way]
    assert rows
    assert done.after.macs == done.before.macs - sum(row.before.macs - row.after.macs for row in rows)
    if name.endswith("flops"):
        assert 0.45 * done.before.macs < done.after.macs <= 0.6 * done.before.macs
    elif name.endswith("bytes"):
        assert 0.45 * done.before.nbytes < done.after.nbytes <= 0.6 * done.before.nbytes
        assert all(row.seconds is None and "bytes are asked for" in row.reason for row in rows)
    elif name.endswith("energy"):
        assert all(row.error <= 0.2 for row in rows)
    else:
        wanted, found = net(*example).detach(), done.model(*example).detach()
        assert (wanted - found).square().sum() <= 0.1 * wanted.square().sum()


def test_a_dead_layer_stays_whole_and_others_go_on():
    net, example = convs()
    with torch.no_grad():
        net.body.weight.zero_()
    rows = {row.path: row for row in factorize(net, "lowrank-80flops", example=example, timer=clock).decisions}
    assert (rows["body"].decision, rows["body"].reason) == ("float", "its weights are all zero")
    assert rows["more"].decision == "low-rank"


def test_a_model_that_answers_zeros_loses_nothing():
    net, example = convs()
    with torch.no_grad():
        for weight in net.head.parameters():
            weight.zero_()
    done = factorize(net, "lowrank-20db", example=example, timer=clock)
    assert not done.model(*example).any()


def test_rows_say_what_became_of_each_layer():
    net, example = convs()
    done = factorize(net, "lowrank-40flops", example=example, timer=clock)
    rows = {row.path: row for row in done.decisions}
    assert list(rows) == ["stem", "depthwise", "body", "more", "head"]
    assert rows["depthwise"].decision == "float"
    assert "no rank to lose" in rows["depthwise"].reason
    more = rows["more"]
    assert (more.decision, more.kind) == ("low-rank", "Conv2d")
    assert more.reason.startswith(f"{more.way} of rank")
    assert "of the multiplications" in more.reason
    assert more.reason.endswith("times as fast")
    assert more.seconds[1] < more.seconds[0]
    parts = list(done.model.more)
    assert sum(one.weight.numel() for one in parts) * 4 <= more.after.nbytes
    assert all(rank % 8 == 0 for rank in more.ranks)
    assert all(type(one) is nn.Conv2d for one in done.model.more)


def test_without_what_is_faster_layers_stay():
    net, example = convs()
    done = factorize(net, "lowrank-80energy", example=example, timer=never)
    assert not [row for row in done.decisions if row.way]
    assert any("is 0.50 times as fast, of" in row.reason for row in done.decisions)
    assert factorize(net, "lowrank-60bytes", example=example, timer=never).after.nbytes <= 0.6 * done.before.nbytes
    with pytest.raises(CallerError, match=r"are not measured faster; ask.*kept whole are depthwise"):
        factorize(net, "lowrank-50flops", example=example, timer=never)


def test_shared_layers_stay_shared():
    torch.manual_seed(0)
    net, x = Twice().eval(), torch.randn(8, 32)
    done = factorize(net, "lowrank-60flops", example=(x,), timer=clock)
    assert done.model.one is done.model.other
    assert isinstance(done.model.one, nn.Sequential)
    assert done.decisions[0].after == done.decisions[1].after
    tied = factorize(Tied().eval(), "lowrank-95bytes", example=(x,), timer=clock)
    assert tied.model.one.weight is tied.model.other.weight
    assert isinstance(tied.model.own, nn.Sequential)
    peeking = factorize(Peeking().eval(), "lowrank-90bytes", example=(x,), timer=clock)
    assert type(peeking.model.seen) is nn.Linear


@pytest.mark.parametrize("mask", [False, True])
def test_pytorchs_own_transformer_becomes_thinner(mask):
    torch.manual_seed(0)
    net, x = encoder(), torch.randn(4, 9, 32)
    done = factorize(net, "lowrank-50bytes", example=(x,), timer=clock)
    rows = {row.path: row for row in done.decisions}
    assert "svd" in {rows[f"layers.{one}.{path}"].way for one in (0, 1) for path in ("linear1", "linear2")}
    assert "svd" in {rows[f"layers.{one}.self_attn.{path}"].way for one in (0, 1) for path in ("q", "k", "v", "out")}
    assert {row.decision for path, row in rows.items() if path.endswith("self_attn")} <= {"replaced", "float"}
    more = {"src_key_padding_mask": torch.arange(9).expand(4, 9) > 6} if mask else {}
    with torch.no_grad():
        wanted, found = net(x, **more), done.model(x, **more)
    assert found.shape == wanted.shape
    assert not torch.allclose(found, wanted)
    whole = factorize(net, "lowrank-99energy", example=(x,), timer=never)
    assert not any(isinstance(one, HeadAttention) for one in whole.model.modules())
    assert {row.decision for row in whole.decisions} == {"float"}
    with torch.no_grad():
        torch.testing.assert_close(whole.model(x, **more), wanted)


@pytest.mark.slow
def test_data_and_a_short_training_win_accuracy_back():
    net = trained(ResNet(32), epochs=4)
    dense = accuracy(net)
    batches = digits()[0]
    blind = factorize(net, "lowrank-20flops", example=image(1), timer=clock)
    aware = factorize(net, "lowrank-20flops", example=image(1), loader=batches, epochs=0, timer=clock)
    said = []
    tuned = factorize(
        net, "lowrank-20flops", example=image(1), loader=batches, epochs=2, timer=clock, progress=said.append
    )
    assert accuracy(blind.model) + 0.01 < accuracy(aware.model)
    assert accuracy(aware.model) - 0.02 < accuracy(tuned.model)
    assert accuracy(tuned.model) > dense - 0.03
    assert len(tuned.losses) == 2
    assert [one for one in said if one.startswith("epoch 2 of 2: loss ")]


@pytest.mark.parametrize("how", ["trp", "learned"])
def test_training_first_ends_within_the_budget(how):
    torch.manual_seed(0)
    net, example = convs()
    batches = [(torch.randn(8, 1, 12, 12), torch.randint(10, (8,))) for _ in range(6)]
    done = factorize(net, f"lowrank-60flops-{how}", example=example, loader=batches, epochs=3, timer=clock)
    assert done.after.macs <= 0.6 * done.before.macs
    assert len(done.losses) == 3
    rows = [row for row in done.decisions if row.way]
    assert {row.way for row in rows} <= ({"svd", "spatial"} if how == "trp" else {"svd"})
    if how == "trp":
        assert max(row.error for row in rows) < 1e-6  # nothing is lost in the end


@pytest.mark.slow
@pytest.mark.parametrize("how", ["trp", "learned"])
def test_training_first_keeps_accuracy(how):
    net = trained(ResNet(32), epochs=4)
    dense = accuracy(net)
    done = factorize(net, f"lowrank-40flops-{how}", example=image(1), loader=digits()[0], epochs=4, timer=clock)
    assert done.after.macs <= 0.4 * done.before.macs
    assert accuracy(done.model) > dense - 0.04
    assert len(done.losses) == 4


def test_a_budget_in_latency_is_measured_whole():
    net, example = convs()
    asked = []

    def latency(model):
        asked.append(1e-9 * count(model, example).macs + 1e-6)
        return asked[-1]

    done = factorize(net, "lowrank-60latency", example=example, latency=latency, timer=clock)
    assert 0.4 * done.before.seconds < done.after.seconds <= 0.6 * done.before.seconds
    assert len(asked) < 14
    with pytest.raises(CallerError, match="takes longer even with every layer"):
        factorize(net, "lowrank-2latency", example=example, latency=latency, timer=clock)


def broken():
    net = Convs()
    net.more.weight.data.fill_(float("nan"))
    return net


@pytest.mark.parametrize(
    ("make", "name", "more", "error", "said"),
    [
        (Convs, "lowrank-50latency", {}, CallerError, "needs latency"),
        (Convs, "lowrank-50flops", {"latency": lambda _: 1.0}, CallerError, "would not be looked at"),
        (Convs, "lowrank-50latency", {"latency": lambda _: -1.0}, CallerError, "latency must give seconds"),
        (Convs, "lowrank-50flops-trp", {}, CallerError, "give a loader and 2 epochs or more.*found no loader"),
        (Convs, "lowrank-50flops-learned", {"loader": [], "epochs": 1}, CallerError, "found 1 epochs"),
        (Convs, "lowrank-50flops", {"epochs": -1}, CallerError, "epochs is a whole number, 0 or more"),
        (Convs, "lowrank-50flops", {"loader": []}, CallerError, "the loader gives no batches"),
        (Convs, "lowrank-50flops", {"loader": iter([])}, CallerError, "iterated over only once"),
        (Convs, "lowrank-50flops", {"loader": [torch.zeros(1)]}, CallerError, "two tensors; batch 1 is Tensor"),
        (
            Convs,
            "lowrank-50flops",
            {"loader": [(torch.zeros(1, 2), torch.zeros(1))]},
            CallerError,
            "fails with a batch of the loader",
        ),
        (Convs, "lowrank-1flops", {}, CallerError, "budget cannot be reached: the least is"),
        (Convs, "lowrank-1bytes", {}, CallerError, "budget cannot be reached: the least is"),
        (broken, "lowrank-50flops", {}, CallerError, "more.weight of the model holds numbers that are not finite"),
        (nn.ReLU, "lowrank-50flops", {}, ModelError, "it has no layers with weights"),
        (lambda: nn.Conv2d(1, 8, 3, bias=False), "lowrank-10flops", {}, CallerError, "cannot be reached"),
    ],
)
def test_what_cannot_be_says_so(make, name, more, error, said):
    with pytest.raises(error, match=said):
        factorize(make().eval(), name, example=(torch.randn(2, 1, 12, 12),), timer=clock, **more)


def test_other_losses_and_numbers_of_outputs():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)).eval()
    batches = [(torch.randn(8, 1, 8, 8), torch.randn(8, 32, 8, 8)) for _ in range(4)]
    done = factorize(
        net, "lowrank-60flops", example=batches[0][0], loader=batches, epochs=1, loss=functional.mse_loss, timer=clock
    )
    assert done.model(batches[0][0]).shape == (8, 32, 8, 8)


def test_compress_takes_the_names(monkeypatch):
    monkeypatch.setattr(timing, "interpreter_timer", lambda: clock)
    net, (x,) = convs()
    batches = [(torch.randn(8, 1, 12, 12), torch.randint(10, (8,))) for _ in range(3)]
    said = []
    small = compress(net, "lowrank-50flops", loader=batches, epochs=1, stage=said.append)
    assert small.form == "fp32"
    assert len(small.losses) == 1
    assert "low-rank" in {row.decision for row in small.decisions}
    assert small.model(x).shape == (2, 10)
    assert any(one.startswith("decompose") for one in said)
    assert compress(net, "lowrank-70bytes", example=x).losses == ()
    for wrong, why in (("lowrank-50", "needs its budget next"), ("lowrnk-50flops", "lowrank-BUDGET with")):
        with pytest.raises(CallerError, match=why):
            compress(net, wrong, example=x)
    with pytest.raises(CallerError, match="needs an example"):
        compress(net, "lowrank-50flops")
    with pytest.raises(CallerError, match="no class numbers"):
        compress(net, "lowrank-50flops", loader=[(x, torch.randn(2, 1))])
