"""Every example in a docstring does what it says, and every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import tfdlrm

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(tfdlrm.__path__, "tfdlrm.") if not module.name.endswith("__main__")
)
FINDER = doctest.DocTestFinder(exclude_empty=True)


def examples_of(module_name: str) -> list[doctest.DocTest]:
    return [test for test in FINDER.find(importlib.import_module(module_name)) if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one process for all of them; a module without an example only has to be importable."""
    runner = doctest.DocTestRunner(verbose=False)
    for test in examples_of(name):
        runner.run(test)
    assert runner.failures == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", tfdlrm.__all__)
def test_public_names_have_an_example_that_runs(name: str) -> None:
    value = getattr(tfdlrm, name)
    own = [test for test in examples_of(value.__module__) if test.name == f"{value.__module__}.{name}"]
    asked = [example for test in own for example in test.examples if not example.options.get(doctest.SKIP)]
    assert asked, f"{name} must have an Example in its docstring"


@pytest.mark.parametrize("name", tfdlrm.__all__)
def test_public_names_are_described(name: str) -> None:
    """What a name takes is told: arguments by `Args`, fields by `Attributes`."""
    value = getattr(tfdlrm, name)
    text = inspect.getdoc(value) or ""
    assert text.splitlines()[0].endswith((".", ":")), name
    takes = [p for p in inspect.signature(value).parameters if p not in ("self", "kwargs", "name")]
    if takes:
        assert "Args:" in text or "Attributes:" in text, name
    untold = [p for p in takes if f"{p}:" not in text and f"{p}," not in text]
    assert not untold, f"{name}: {untold}"


@pytest.mark.parametrize("name", tfdlrm.__all__)
def test_public_names_are_typed(name: str) -> None:
    value = getattr(tfdlrm, name)
    function = value.__init__ if inspect.isclass(value) and value.__init__ is not object.__init__ else value
    bare = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.annotation is inspect.Parameter.empty and parameter.name != "self"
    ]
    assert not bare, f"{name}: {bare}"
