"""The pages that people read: links that lead somewhere, two READMEs in step, and code that runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

import armillary
from armillary.cli.verbs import app
from armillary.laws import ExtrapolationWarning
from armillary.recipe import Recipe

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PAGES = [*READMES, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def prose(path: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def headings(path: Path) -> list[tuple[int, str]]:
    return [(len(marks), text) for marks, text in re.findall(r"^(#+) (.+)$", prose(path), re.MULTILINE)]


def anchors(path: Path) -> set[str]:
    """The anchors that a forge makes of the headings: lower case, punctuation dropped, spaces to hyphens."""
    found: set[str] = set()
    for _, text in headings(path):
        plain = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        number, anchor = 0, plain
        while anchor in found:
            number += 1
            anchor = f"{plain}-{number}"
        found.add(anchor)
    return found


def links(path: Path) -> list[str]:
    without_code = re.sub(r"`[^`\n]*`", "", prose(path))
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", without_code) if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_and_anchor_leads_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = page if not name else page.parent / name
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_readmes_have_the_same_sections_tables_and_links() -> None:
    english, chinese = READMES
    assert [level for level, _ in headings(english)] == [level for level, _ in headings(chinese)]

    def sections(page: Path) -> list[str]:
        return re.split(r"^#+ .+$", prose(page), flags=re.MULTILINE)

    for one, other in zip(sections(english), sections(chinese), strict=True):
        rows = [len(re.findall(r"^\|", text, re.MULTILINE)) for text in (one, other)]
        points = [len(re.findall(r"^- ", text, re.MULTILINE)) for text in (one, other)]
        assert rows[0] == rows[1] and points[0] == points[1], one[:80]
    kept = [sorted(link for link in links(page) if not link.startswith("README")) for page in READMES]
    assert kept[0] == kept[1]


def without_comments(code: str) -> list[str]:
    return [re.sub(r"\s*#.*$", "", line).rstrip() for line in code.splitlines()]


def test_the_readmes_have_the_same_code() -> None:
    blocks = [[(kind, without_comments(code)) for kind, code in FENCE.findall(page.read_text(encoding="utf-8"))]
              for page in READMES]  # fmt: skip
    assert blocks[0] == blocks[1]
    inline = [sorted(re.findall(r"`([^`\n]+)`", prose(page))) for page in READMES]
    assert inline[0] == inline[1]


def test_the_readmes_have_the_same_numbers() -> None:
    """Figures of the run in the picture and of its command, in both languages."""

    def numbers(page: Path) -> set[str]:
        text = re.sub(r"\]\([^)]*\)|`[^`\n]*`", " ", prose(page))
        return set(re.findall(r"\d+\.\d{2,}", text))

    assert numbers(READMES[0]) == numbers(READMES[1])


@pytest.fixture
def printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """What a program of a page prints. It runs in an empty folder, in this process, which has loaded the libraries."""

    def run(code: str) -> str:
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        exec(compile(code, "page", "exec"), {"__name__": "__main__"})
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_the_python_of_the_readme_runs(page: Path, printed: Callable[[str], str]) -> None:
    (code,) = [code for kind, code in FENCE.findall(page.read_text(encoding="utf-8")) if kind == "python"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExtrapolationWarning)
        said = printed(code)
    assert re.match(r"\d\.\d\d \(\d\.\d\d to \d\.\d\d\), main form: \w+", said)


def test_the_supervised_run_of_the_docs_runs(printed: Callable[[str], str]) -> None:
    text = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    (code,) = [code for kind, code in FENCE.findall(text) if kind == "python" and "write_examples" in code]
    found = re.fullmatch(r"answers: (\d\.\d\d) nats per token, 0\.\d\d passes", printed(code).strip())
    assert found is not None and float(found[1]) < 3  # the vocabulary has 300 tokens: 5.7 before the first step


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_the_recipe_of_the_readme_is_one(page: Path) -> None:
    (code,) = [code for kind, code in FENCE.findall(page.read_text(encoding="utf-8")) if kind == "yaml"]
    recipe = Recipe.model_validate(yaml.safe_load(code))
    assert recipe.name == "mine" and recipe.target_weights == {"tickets": 0.6, "handbook": 0.4}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_verb_that_a_page_names_exists(page: Path) -> None:
    command = get_command(app)
    verbs = dict(command.commands)  # type: ignore[attr-defined]
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?:^|[`\s])(?<!from )armillary ((?:study |fit |post )?[a-z][a-z-]+)(?=[ `\n])", text)
    for verb in named:
        group, _, rest = verb.partition(" ")
        assert group in verbs, verb
        if rest and group in ("study", "fit"):
            assert rest in verbs[group].commands, verb


def test_the_library_page_runs(printed: Callable[[str], str]) -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    code = "\n".join(code for kind, code in FENCE.findall(text) if kind == "python")
    said = printed(code)
    assert "predicted first: True, inside: True; the store is sound: True" in said
    found = re.search(r"long minus short: ([+-]\d\.\d\d)", said)
    assert found is not None and float(found[1]) > 0  # more steps are better


def test_the_library_page_names_what_the_package_offers() -> None:
    table = (ROOT / "docs" / "python.md").read_text(encoding="utf-8").split("\n\n")[2]
    named = [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(named) == sorted(armillary.__all__) and len(named) == 10


def test_the_site_has_every_page_and_a_reference_of_every_room() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"^ +- [^\n]*: (\S+\.md)$", nav, re.MULTILINE))
    docs = ROOT / "docs"
    assert listed == {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")}
    rooms = {file.parent.name for file in (ROOT / "src" / "armillary").glob("*/__init__.py")}
    public = {room for room in rooms if room != "cli"}  # the command line is no library
    assert {page.stem for page in (docs / "reference").glob("*.md")} == {*public, "armillary"}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="pip install 'armillary[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'id="armillary.store.Store.record_prediction"' in (
        tmp_path / "site" / "reference" / "store" / "index.html"
    ).read_text(encoding="utf-8")
