"""README and docs: links lead somewhere, commands and studies are as the program has them, figures are the results'."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pandas as pd
import pytest
import yaml
from scipy import stats

from pretune.cli import cli
from pretune.search_spaces import schema
from pretune.search_spaces.resolve import load

TOP = Path(__file__).resolve().parents[1]
README = TOP / "README.md"
DOCS = sorted(path for path in (TOP / "docs").rglob("*.md") if "decisions" not in path.parts)
PAGES = [README, TOP / "CONTRIBUTING.md", TOP / "CHANGELOG.md", *DOCS]
ALL = [*PAGES, *sorted((TOP / "docs" / "decisions").glob("*.md")), *sorted((TOP / "benchmarks").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")


def name_of(path: Path) -> str:
    return path.relative_to(TOP).as_posix()


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", TOP / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def blocks(path: Path, *languages: str) -> Iterator[str]:
    """The code blocks of a page in one of the languages."""
    for language, text in BLOCK.findall(path.read_text("utf-8")):
        if language in languages:
            yield text


# ------------------------------------------------------------------------------------------------------------ links


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S)
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_every_link_leads_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", path.read_text("utf-8"), flags=re.M | re.S)
    for target in LINK.findall(text):
        link, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        found = (path.parent / link).resolve() if link else path
        assert found.exists(), f"{name_of(path)}: {target}"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{name_of(path)}: {target}: no such heading"


def test_the_site_has_every_page_in_its_navigation() -> None:
    named = set(re.findall(r": ([\w/-]+\.md)$", (TOP / "mkdocs.yml").read_text("utf-8"), re.M))
    made = {"index.md", "messages.md", "CONTRIBUTING.md", "CHANGELOG.md", "decisions/README.md"}
    assert named - made == {path.relative_to(TOP / "docs").as_posix() for path in DOCS}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "five commands" in (tmp_path / "index.html").read_text("utf-8")
    assert (tmp_path / "search_spaces" / "papers" / "p1_figure3.yaml.txt").is_file()


# --------------------------------------------------------------------------------------------------------- commands


def commands_in(path: Path) -> Iterator[str]:
    """Every `pretune ...` of a page: lines of shell blocks, and code within sentences that has a command."""
    text = path.read_text("utf-8")
    for block in blocks(path, "sh", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith("pretune "):
                yield line.strip()
    for code in re.findall(r"`(pretune [^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)):
        if "..." not in code and "COMMAND" not in code and "|" not in code:
            yield code


def problem_of(line: str) -> str:
    """The fault of a command line: an unknown command, option or choice, or too few or too many words; or ""."""
    words, command = shlex.split(line, comments=True)[1:], typing.cast(click.Command, cli)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"no command {words[0]}"
        command = command.commands[words.pop(0)]
    options = {name: p for p in command.params if isinstance(p, click.Option) for name in (*p.opts, *p.secondary_opts)}
    arguments = 0
    while words:
        word = words.pop(0)
        name, mark, value = word.partition("=")
        if not word.startswith("-"):
            arguments += 1
        elif word in ("--help", "-h", "--version"):
            return ""
        elif name not in options:
            return f"no option {word}"
        elif not options[name].is_flag and not mark:
            value = words.pop(0) if words else ""
        kind = options[name].type if word.startswith("-") else None
        if value and isinstance(kind, click.Choice) and value not in kind.choices:
            return f"{name} has no choice {value}"
    taken = [parameter.nargs for parameter in command.params if isinstance(parameter, click.Argument)]
    most = sum(taken)
    return "" if arguments <= most or -1 in taken else f"{arguments} words where {most} are taken"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_command_of_a_page_is_one(path: Path) -> None:
    wrong = {line: why for line in commands_in(path) if (why := problem_of(line))}
    assert not wrong


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("pretune fun study.yaml", "no command fun"),
        ("pretune run study.yaml --quick", "no option --quick"),
        ("pretune report runs/x --figures gif", "--figures has no choice gif"),
        ("pretune report runs/x runs/y", "2 words where 1 are taken"),
        ("pretune data check study.yaml --data D   # reads all", ""),
        ("pretune run study.yaml --set a=b --dashboard", ""),
    ],
)
def test_a_wrong_command_is_found(line: str, why: str) -> None:
    assert problem_of(line) == why


def test_the_page_of_commands_is_the_programs() -> None:
    page = script("cli")
    assert page.PAGE.read_text("utf-8").splitlines() == page.page().splitlines(), "run python docs/cli.py"


def test_writing_the_page_of_commands_leaves_the_commands_as_they_are() -> None:
    """Click keeps a command's help option as the first context saw it; the page is written in processes of tests."""
    code = "import cli; cli.page(); cli.cli(['store', 'gc', '-h'])"
    ended = subprocess.run([sys.executable, "-c", code], cwd=TOP / "docs", capture_output=True, text=True)
    assert (ended.returncode, "Usage: " in ended.stdout) == (0, True), ended.stderr


# ---------------------------------------------------------------------------------------------------------- studies


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_yaml_of_a_page_is_yaml_and_its_studies_resolve(path: Path, tmp_path: Path) -> None:
    for text in blocks(path, "yaml"):
        read = yaml.safe_load(text)
        assert isinstance(read, dict), text
        if "study" in read:
            file = tmp_path / "study.yaml"
            file.write_text(text, "utf-8")
            load(file, None, ())


def test_readme_shows_a_study_of_ten_lines_and_counts_its_stage_runs(tmp_path: Path) -> None:
    (text,) = blocks(README, "yaml")
    assert len(text.splitlines()) <= 11
    (tmp_path / "study.yaml").write_text(text, "utf-8")
    from pretune.plan import make_plan
    from pretune.search_spaces.identities import fingerprint

    study = load(tmp_path / "study.yaml", None, ())
    made, _ = make_plan(study, lambda data: fingerprint(data.model_dump(mode="json")), lambda name: None, {})
    words = re.sub(r"\s+", " ", README.read_text("utf-8"))
    assert f"{made.stage_runs} training runs instead of {made.stage_runs_without_sharing}" in words


# ---------------------------------------------------------------------------------------------------------- figures


def test_readme_is_short() -> None:
    assert len(README.read_text("utf-8").split()) <= 700


def test_the_table_of_readme_is_that_of_the_results() -> None:
    """Means, standard deviations, and paired gains over the random start with their t intervals."""
    results = pd.read_parquet(TOP / "benchmarks" / "results" / "studies" / "few-labels" / "results.parquet")
    rows = results[(results.phase == "confirm") & (results.metric == "test/jaccard")]
    cells = rows.pivot(index="seed", columns=["factor.start", "factor.encoder", "factor.labels"], values="value")
    counts = sorted(set(rows["factor.labels"]), key=int)
    shown = [
        line
        for line in README.read_text("utf-8").replace("**", "").splitlines()
        if line.startswith("|") and "±" in line
    ]
    assert len(shown) == 5
    for line in shown:
        first, *given = [part.strip() for part in line.strip("|").split("|")]
        start, encoder = first.split(", ")
        expected = []
        for labels in counts:
            values = cells[start, encoder, labels]
            gain = values - cells["random", "free", labels]
            low, high = stats.t.interval(0.95, len(gain) - 1, gain.mean(), stats.sem(gain)) if gain.any() else (0, 0)
            text = f" ({gain.mean():+.3f} [{low:.3f}, {high:.3f}])" if gain.any() else ""
            expected.append(f"{values.mean():.3f}±{values.std():.3f}{text}".replace("-", "−"))
        assert given == expected


def test_the_figure_is_drawn_from_the_results() -> None:
    showcase = script("showcase")
    lines = showcase.lines_of(pd.read_parquet(showcase.RESULTS))
    assert {(line.start, line.frozen) for line in lines} == {
        (start, frozen)
        for start in ("random", "SimCLR", "ImageNet", "ImageNet then SimCLR")
        for frozen in (False, True)
    }
    by_name = {(line.start, line.frozen): line for line in lines}
    assert by_name["ImageNet", True].means[50] == pytest.approx(0.763, abs=5e-4)
    assert {count: len(seeds) for count, seeds in lines[0].seeds.items()} == {50: 5, 200: 5}


def test_figures_of_real_studies_are_drawn_from_stored_results_and_shown() -> None:
    figures = script("figures")
    page = (TOP / "docs" / "analysis.md").read_text("utf-8")
    for name, draw in figures.FIGURES.items():
        assert figures.plots.caption_of(draw())
        assert f"](images/{name}.png)" in page
        assert f"`python docs/figures.py {name}`" in page
        assert (figures.IMAGES / f"{name}.png").stat().st_size < 300_000


def test_labels_of_lines_do_not_overlap() -> None:
    assert script("showcase").apart([10.0, 11.0, 60.0, 5.0], 15) == [20.0, 35.0, 60.0, 5.0]


# -------------------------------------------------------------------------------------------------------- inventory


def test_the_page_of_methods_names_every_method_model_probe_and_data_set_of_ones_own() -> None:
    text = (TOP / "docs" / "methods.md").read_text("utf-8")
    for file in ("methods", "model"):
        source = (TOP / "search_spaces" / "schema" / f"{file}.py").read_text("utf-8")
        for name in re.findall(r'^    name: Literal\["([^"]+)"\]', source, re.M):
            assert f"`{name}`" in text, name
    stages = (TOP / "search_spaces" / "schema" / "stages.py").read_text("utf-8")
    for kind in re.findall(r'^    kind: Literal\["([^"]+)"\]', stages, re.M):
        assert f"`{kind}`" in text, kind
    assert schema.Data is not None


def test_the_inventory_of_messages_has_what_is_raised_and_no_docstring() -> None:
    inventory = script("messages")
    said = list(inventory.messages())
    texts = {message.text for message in said}
    assert "{file} already exists; choose another name or delete it" in texts
    assert len(said) > 1000
    docstring = ast.get_docstring(ast.parse((TOP / "pretune" / "cli" / "__init__.py").read_text("utf-8")))
    assert docstring not in texts
    assert not {message.path for message in said} & inventory.NOT_SAID.keys()


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((TOP / "CITATION.cff").read_text("utf-8"))
    project = tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
