"""Every example in a docstring or on a page runs and gives what it says; every public name is documented."""

import contextlib
import doctest
import importlib
import inspect
import io
import pathlib
import pkgutil
import re
import tomllib
from typing import Any

import pytest

import linkax
import linkax.chains
import linkax.transforms

PACKAGES: tuple[Any, ...] = (linkax.transforms, linkax.chains)
MODULES = [
    importlib.import_module(module.name)
    for package in PACKAGES
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
] + [linkax]
PUBLIC = {
    f"{package.__name__}.{name}": value
    for package in PACKAGES
    for name, value in vars(package).items()
    if not name.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value))
}
FACTORIES = [name for name, value in PUBLIC.items() if inspect.isfunction(value) and hasattr(value, "__wrapped__")]
ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_run(page, tmp_path, monkeypatch):
    """A page's Python blocks run one after the other, as a reader would paste them, and print what is below them."""
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"__name__": "__main__"}
    for block, shown in re.findall(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", page.read_text("utf-8"), re.DOTALL):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, str(page), "exec"), scope)
        if shown:
            assert [line.rstrip() for line in printed.getvalue().splitlines()] == shown.splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    headings = {
        other: {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in lines}
        for other in PAGES
        for lines in [re.findall(r"^#+ .*$", other.read_text("utf-8"), re.MULTILINE)]
    }
    for target, _, heading in re.findall(r"\]\(((?!https?:)[^)#]*)(#([^)]*))?\)", page.read_text("utf-8")):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        assert not heading or heading in headings[file], heading


def test_readme_is_short():
    assert len(README.read_text("utf-8").splitlines()) < 150


def test_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert linkax.__version__ == project["version"]
    assert f"version: {linkax.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_the_package_itself_has_what_chains_has():
    for name, value in vars(linkax.chains).items():
        if not name.startswith("_") and not inspect.ismodule(value):
            assert getattr(linkax, name) is value
