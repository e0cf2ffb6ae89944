"""Every example in a docstring or in the README runs and gives what it says; every public name is documented."""

import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re
from typing import Any

import pytest

import linkax.chains
import linkax.transforms

PACKAGES: tuple[Any, ...] = (linkax.transforms, linkax.chains)
MODULES = [
    importlib.import_module(module.name)
    for package in PACKAGES
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]
PUBLIC = {
    f"{package.__name__}.{name}": value
    for package in PACKAGES
    for name, value in vars(package).items()
    if not name.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value))
}
FACTORIES = [name for name, value in PUBLIC.items() if inspect.isfunction(value) and hasattr(value, "__wrapped__")]
README = pathlib.Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_docstring_examples(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    assert inspect.getdoc(PUBLIC[name])


@pytest.mark.parametrize("name", FACTORIES)
def test_factories_say_everything(name):
    text = inspect.getdoc(PUBLIC[name]) or ""
    summary, blank, *_ = text.splitlines()
    assert summary.endswith(".")
    assert blank == ""
    arguments = inspect.signature(PUBLIC[name]).parameters
    for section in ("Returns:", "Example:", "Source:", *(["Args:"] if arguments else [])):
        assert f"\n{section}" in text, section
    for argument in arguments:
        assert f"\n    {argument}: " in text, argument


def test_readme_examples(tmp_path, monkeypatch):
    """The README's Python blocks, one after the other, as a reader would paste them; `>>>` ones are checked."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 3
    scope: dict[str, Any] = {}
    for block in blocks:
        if ">>>" in block:
            runner = doctest.DocTestRunner()
            test = doctest.DocTestParser().get_doctest(block, scope, "README", str(README), 0)
            runner.run(test, clear_globs=False)
            scope.update(test.globs)
            assert runner.summarize(verbose=False).failed == 0
        else:
            exec(compile(block, str(README), "exec"), scope)
