"""Every public name has a docstring and a place in the reference; the pages are built, and can be read offline."""

import dataclasses
import doctest
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest
from local_server import served
from transformers import TrainingArguments

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
PACKAGES = ["dco_trl", "dco_trl.grading", "dco_trl.runs", "dco_trl.sampling", "dco_trl.statistics", "dco_trl.trainer"]
NAMES = [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]
USERS_MAKE = {"DCOConfig", "CoTDCOConfig", "Problem", "SampleRequest", "SamplingParams"}
# Modules whose docstrings' examples run quickly and without a model.
EXAMPLES = """
    coverage problem theory runs.problems runs.sample runs.store sampling.protocol
    grading.boxes grading.choice grading.code_blocks grading.extract grading.graders grading.normalize
    grading.notation grading.reward_function grading.string_graders grading.thoughts
    statistics.beta_binomial statistics.expected_schedule statistics.intervals statistics.majority_vote
    statistics.never_solved statistics.pass_at_k statistics.posterior_weight statistics.schedule
    trainer.cot_config trainer.dco_config trainer.segments trainer.success_counts
""".split()


@pytest.mark.parametrize(("package", "name"), NAMES, ids=[f"{package}.{name}" for package, name in NAMES])
def test_public_name_has_a_docstring_with_every_argument_and_an_example_and_a_place_in_the_reference(package, name):
    value = getattr(importlib.import_module(package), name)
    if not callable(value):
        return
    assert value.__doc__ and len(value.__doc__) > 20, f"{package}.{name} has no docstring"
    assert re.search(rf"^::: dco_trl\.[\w.]*\b{name}$", REFERENCE, re.M), f"{package}.{name}: not in the reference"
    if inspect.isclass(value) and issubclass(value, Exception):
        return
    document = inspect.getdoc(value)
    if inspect.isclass(value) and issubclass(value, TrainingArguments):
        arguments = [field.name for field in dataclasses.fields(value) if field.name in value.__annotations__]
    else:
        parameters = inspect.signature(value).parameters.values()
        arguments = [
            p.name for p in parameters if p.name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
    # Shared descriptions such as "low, high: …" name each.
    missing = [a for a in arguments if not re.search(rf"^ +([\w, ]*\W|\*\*)?{a}(, [\w, ]*)?:", document, re.M)]
    assert not missing, f"{package}.{name}: no description of {missing}"
    # What functions return is shown by their own examples.
    made_by_others = inspect.isclass(value) and (
        dataclasses.is_dataclass(value) or getattr(value, "_is_protocol", False)
    )
    if not made_by_others or name in USERS_MAKE:
        assert re.search(r"^Examples:$", document, re.M), f"{package}.{name}: no example"


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_of_docstrings_run(module, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(f"dco_trl.{module}"), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted and not result.failed


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation, built, and served from this machine."""
    pytest.importorskip("mkdocs", reason="MkDocs is not installed: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    class Site(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

    with served(Site) as address:
        yield folder, f"{address}/"


@pytest.mark.slow
def test_the_reference_shows_examples_as_code(site):
    page = (site[0] / "reference" / "index.html").read_text()
    assert 'class="gp">&gt;&gt;&gt;' in page
    assert not re.search(r"<p>(&gt;){3}|<blockquote>\s*<blockquote>", page)  # rather than nested quotations


@pytest.mark.slow
@pytest.mark.browser
def test_pages_need_no_network_show_formulas_and_cut_no_table(site, browser):
    folder, address = site
    wide = """() => [...document.querySelectorAll(".md-typeset__scrollwrap")]
        .filter(frame => frame.scrollWidth > frame.clientWidth + 1).map(frame => frame.innerText.slice(0, 60))"""
    tab = browser.new_page(viewport={"width": 1400, "height": 900})
    requests = []
    tab.on("request", lambda request: requests.append(request.url))
    for page in sorted(folder.rglob("index.html")):
        tab.goto(address + str(page.relative_to(folder)))
        assert tab.evaluate(wide) == [], page.parent.name
    assert [url for url in requests if not url.startswith(address)] == []

    tab.goto(address + "method/")
    box = tab.locator("math mfrac").first.bounding_box()
    assert box["width"] > 50 and box["height"] > 20  # a fraction is shown as one: numerator over denominator
    assert "\\frac" not in tab.locator("article").inner_text()
    tab.close()


def hook(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_first_page_is_readme_with_links_from_its_place():
    start = hook("start")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="why.md"))
    assert start.on_page_read_source(page) is None
    page.file.src_uri = "index.md"
    shown = start.on_page_read_source(page)
    links = [link for link in re.findall(r"\]\(([^)#]+)", shown) if not link.startswith("https://")]
    assert "why.md" in links and all((ROOT / "docs" / link).exists() for link in links)
    readme = (ROOT / "README.md").read_text()
    unlinked = re.compile(r"\]\([^)]*\)|[\[\]]")
    assert unlinked.sub("", shown) == unlinked.sub("", readme)


def test_a_formula_that_cannot_be_shown_stops_the_build():
    formulas = hook("formulas")
    shown = formulas.on_page_content('<p><span class="arithmatex">\\(p &lt; 1\\)</span></p>')
    assert "<math" in shown and "\\(" not in shown
    with pytest.raises(Exception, match=r"latex2mathml does not know \\nosuch, in the formula \\nosuch x"):
        formulas.on_page_content('<div class="arithmatex">\\[\\nosuch x\\]</div>')
