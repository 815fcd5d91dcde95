from __future__ import annotations

import sys

import pytest
import torch

from ferryman.converter.source import load_sources, make_source
from ferryman.runtime.contracts.errors import CallerError, ModelError
from tests.unit.converter.nets import Function

FACTORIES = """
import torch

linear = torch.nn.Linear(2, 2).eval()
x = torch.ones(1, 2)
good = lambda: (linear, (x,))
three = lambda: (linear, (x,), ({0: None},))
one_tensor = lambda: (linear, x)
by_name = lambda: (linear, {"input": x})
training = lambda: (torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout()).eval()[1].train(), (x,))
text = lambda: "hello"
single = lambda: (linear,)
four = lambda: (linear, (x,), None, None)
swapped = lambda: ((x,), linear)
number = lambda: (linear, 3)
def broken():
    raise RuntimeError("the weights are gone")
def exits():
    import argparse
    argparse.ArgumentParser().parse_args(["--nope"])
def _hidden(): ...
def shown(): ...
value = 5
class Net(torch.nn.Linear): ...
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A module in the current directory, and sys.path as it was afterwards."""
    (tmp_path / "some_factories.py").write_text(FACTORIES)
    (tmp_path / "some_broken_module.py").write_text("import nothing_of_this_name")
    (tmp_path / "some_script.py").write_text("import sys; sys.exit()")
    (tmp_path / "some_syntax_error.py").write_text("def (")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    for name in ("some_factories", "some_script", "some_broken_module", "some_syntax_error"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("text", ["", ":", "a", "a:", ":b", "model.pt", "model.onnx"])
def test_text_that_is_no_source_is_refused_with_what_one_is(text):
    with pytest.raises(CallerError, match=r"SOURCE is package\.module:factory or a \.pt2 file"):
        load_sources(text)[None]


@pytest.mark.parametrize("name", ["good", "one_tensor", "three"])
def test_a_factory_gives_a_module_and_its_call(factories, name):
    source = load_sources(f"some_factories:{name}")[None]
    assert source.name == name
    assert [tuple(tensor.shape) for tensor in source.args] == [(1, 2)]
    assert (source.dynamic_shapes is not None) == (name == "three")


def test_keyword_inputs_become_the_call_they_make(factories):
    source = load_sources("some_factories:by_name")[None]
    assert len(source.args) == 1
    assert not source.kwargs


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("no_such_module:f", r"no module 'no_such_module'; is it installed"),
        ("some_factories.sub:f", r"no module|cannot be imported"),
        ("some_broken_module:f", "some_broken_module cannot be imported: No module named 'nothing_of_this_name'"),
        (
            "some_script:f",
            r"some_script ended the process while it was imported \(exit code 0\); put what a script does",
        ),
        ("some_factories:exits", r"some_factories:exits ended the process \(exit code 2\); a factory returns"),
        ("some_syntax_error:f", "some_syntax_error cannot be imported: SyntaxError"),
        (".relative:f", "cannot be imported: TypeError"),
        ("some_factories:nope", r"has no function 'nope'; there are: .*shown"),
        ("some_factories:value", "has no function 'value'"),
        ("some_factories:text", r"returned str: expected \(nn\.Module, inputs\)"),
        ("some_factories:single", "returned tuple: expected"),
        ("some_factories:four", "returned tuple: expected"),
        ("some_factories:swapped", r"returned \(tuple, Linear, \.\.\.\): expected"),
        ("some_factories:number", r"returned \(Linear, int, \.\.\.\): expected"),
        ("some_factories:linear", "some_factories:linear is a module itself; SOURCE must name a factory: a function"),
        ("some_factories:Net", "some_factories:Net is a module itself; SOURCE must name a factory: a function"),
        ("some_factories:broken", "some_factories:broken failed: RuntimeError: the weights are gone"),
    ],
)
def test_a_factory_that_is_none_is_refused_with_the_reason(factories, text, match):
    with pytest.raises(CallerError, match=match):
        load_sources(text)[None]


def test_functions_with_an_underscore_are_not_offered(factories):
    with pytest.raises(CallerError) as caught:
        load_sources("some_factories:nope")[None]
    assert "_hidden" not in str(caught.value)


def test_training_mode_is_refused_and_the_part_is_named(factories):
    with pytest.raises(ModelError, match=r"training mode: call \.eval\(\)"):
        load_sources("some_factories:training")[None]
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout()).eval()
    net[1].train()
    with pytest.raises(ModelError, match="1 is in training mode"):
        make_source(net, torch.ones(1, 2))


@pytest.mark.parametrize("inputs", [None, 3, "x", {1, 2}])
def test_inputs_of_a_wrong_kind_are_refused(inputs):
    with pytest.raises(CallerError, match="inputs are a tensor, a tuple"):
        make_source(Function(torch.abs), inputs)


def test_something_else_than_a_module_is_refused():
    with pytest.raises(CallerError, match=r"expected an nn\.Module and example inputs, found builtin"):
        make_source(torch.abs, torch.ones(1))


@pytest.mark.parametrize("leaf", [3, 2.5, None, "x", True])
def test_inputs_that_are_no_tensors_are_refused(leaf):
    with pytest.raises(ModelError, match="every input must be a tensor, found"):
        make_source(Function(lambda a, _: a), (torch.ones(1), leaf))


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (lambda: torch.ones(2).to_sparse(), "a sparse_coo tensor on cpu"),
        (lambda: torch.eye(2).to_sparse_csr(), "a sparse_csr tensor on cpu"),
        (lambda: torch.ones(2, device="meta"), "a strided tensor on meta"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_inputs_that_are_no_dense_cpu_tensors_are_refused(made, found):
    with pytest.raises(ModelError, match=f"net: every input must be a dense CPU tensor, found {found}"):
        make_source(Function(torch.abs), (made(),), name="net")


def test_inputs_that_forward_does_not_take_are_refused():
    with pytest.raises(ModelError, match="forward does not take the example inputs: too many"):
        make_source(torch.nn.Linear(2, 2).eval(), (torch.ones(1, 2), torch.ones(1)))


# Saved programs.


def save(path, function, inputs):
    torch.export.save(torch.export.export(Function(function), inputs, strict=False), path)
    return str(path)


def test_a_saved_program_is_named_after_its_file(tmp_path):
    source = load_sources(save(tmp_path / "my.net.pt2", lambda a, b: a + b, (torch.ones(2), torch.ones(2))))[None]
    assert source.name == "my.net"
    assert len(source.args) == 2
    assert source.program is not None


def test_a_missing_program_is_the_callers_fault(tmp_path):
    with pytest.raises(CallerError, match=r"no file .*nope\.pt2"):
        load_sources(str(tmp_path / "nope.pt2"))[None]
    with pytest.raises(CallerError, match="no file"):
        load_sources(".pt2")[None]


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"hello", lambda data: data[: len(data) // 2]])
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_program_is_refused_in_few_lines(tmp_path, damage):
    path = tmp_path / "net.pt2"
    save(path, torch.abs, (torch.ones(2),))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match="is not a program that torch") as caught:
        load_sources(str(path))[None]
    assert len(str(caught.value).splitlines()) <= 5
    assert caught.value.__cause__ is not None


def test_a_program_with_a_number_among_its_inputs_is_refused(tmp_path):
    path = save(tmp_path / "net.pt2", lambda a, n: a + n, (torch.ones(2), 3))
    with pytest.raises(ModelError, match="every input must be a tensor, found 3"):
        load_sources(path)[None]
