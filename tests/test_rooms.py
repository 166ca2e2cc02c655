"""The house: a room imports only what another room exports, and every module has a test file or a reason."""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "armillary"
TESTS = Path(__file__).parent


@cache
def exported(package: Path) -> set[str]:
    """The names in ``__all__`` of a package; empty where it has none."""
    for node in ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return set(ast.literal_eval(node.value))
    return set()


def imports(file: Path) -> Iterator[tuple[int, list[str], str]]:
    """Line, path of the module, and name of everything that a file takes from this package."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "armillary":
            for alias in node.names:
                yield node.lineno, node.module.split(".")[1:], alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("armillary."):
                    *path, name = alias.name.split(".")[1:]
                    yield node.lineno, path, name


def is_public(path: list[str], name: str, src: Path = SRC) -> bool:
    """Whether ``from armillary.PATH import NAME`` takes only what each package on the way exports."""
    place = src
    for step, after in zip(path, [*path[1:], name], strict=True):
        place = place / step
        if not place.is_dir():  # a module that its package exports: all of its public names are
            return not name.startswith("_")
        if after not in exported(place):
            return False
    return True


def strangers(src: Path = SRC) -> list[str]:
    """Imports of what another room does not export."""
    found = []
    for file in sorted(src.rglob("*.py")):
        room = file.relative_to(src).parts[0].removesuffix(".py")
        for line, path, name in imports(file):
            if path and path[0] != room and (src / path[0]).is_dir() and not is_public(path, name, src):
                found.append(f"{file.relative_to(src)}:{line}: armillary.{'.'.join(path)}.{name}")
    return found


def test_a_room_imports_only_what_another_exports() -> None:
    assert strangers() == []


def test_an_import_of_what_is_not_exported_is_found(tmp_path: Path) -> None:
    for name, text in {
        "low/__init__.py": "from armillary.low.a import good\n__all__ = ['good', 'open']\n",
        "low/a.py": "good = bad = 1\n",
        "low/open.py": "free = _own = 1\n",
        "high/__init__.py": "from armillary.low import good\nfrom armillary.low.open import free\n__all__ = []\n",
        "high/b.py": (
            "from armillary.low.a import good\nfrom armillary.low import bad\nfrom armillary.low.open import _own\n"
            "import armillary.low.a\nimport armillary.low.open\n"
        ),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert [line.split(": ")[0] for line in strangers(tmp_path)] == [f"high/b.py:{line}" for line in (1, 2, 3, 4)]


@pytest.mark.parametrize("package", sorted(SRC.rglob("__init__.py")), ids=lambda file: file.parent.name)
def test_what_a_package_exports_is_there(package: Path) -> None:
    names = exported(package.parent)
    if not names:
        return
    dotted = ".".join(["armillary", *package.parent.relative_to(SRC).parts])
    module = importlib.import_module(dotted)
    lacking = [name for name in names if not hasattr(module, name)]
    for name in lacking:
        importlib.import_module(f"{dotted}.{name}")


# Modules without a test file of their own name, that no test imports: where they are tested, and why there.
TESTED_THROUGH = {
    "cli/app.py": ("cli/test_cli.py", "it holds the app that every verb belongs to"),
    "cli/options.py": ("cli/test_cli.py", "it gives verbs their options; its work is the command line"),
    "cli/backends.py": ("cli/test_generate_verb.py", "options that open a model"),
    "cli/values.py": ("cli/test_cli.py", "callbacks of options; what they refuse is seen at the command line"),
    "cli/workspaces.py": ("cli/test_cli.py", "options of a recipe's verbs"),
    "cli/show/*.py": ("cli/test_cli.py", "what is printed is compared where a verb prints it"),
    "cli/verbs/*.py": ("cli/test_cli.py", "a verb parses, calls one function and prints; that function has its tests"),
    "cli/verbs/post/*.py": ("cli/test_post_data_verbs.py", "as the other verbs"),
    "console/*.py": ("console/test_console_pages.py", "parts of the pages, seen in what they show"),
    "console/pages/*.py": ("console/test_console_pages.py", "one module for each page"),
    "corpus/batch.py": ("corpus/test_order.py", "the form in which a data order yields its batches"),
    "corpus/index.py": ("corpus/test_overlap.py", "the index is a part of looking for overlap"),
    "corpus/orders.py": ("corpus/test_order.py", "chooses an order by the run's objective"),
    "corpus/p*.py": ("corpus/test_build.py", "parts of building and packing, compared in the files that they make"),
    "corpus/streams.py": ("corpus/test_sources.py", "compressed files are read as sources"),
    "corpus/texts.py": ("corpus/test_build.py", "text of held-out documents, read back from shards"),
    "evaluate/contests/contest.py": ("evaluate/contests/test_run.py", "the protocol of a contest; each has its scores"),
    "evaluate/contests/rows.py": ("evaluate/contests/test_files.py", "reads the files of contests"),
    "generate/*.py": ("generate/test_generate.py", "parts of answering a file of prompts"),
    "goodput/*.py": ("goodput/test_simulate.py", "what a simulation is given: a cluster and a scenario"),
    "launch/clusters/*.py": ("launch/clusters/test_jobs.py", "parts of a job, from its profile to its state"),
    "launch/workers/proof.py": (
        "launch/workers/test_ray_executor.py",
        "it takes a second machine, or a process as one",
    ),
    "laws/*/law.py": ("laws/test_estimators.py", "imported by the name of the law; tests/laws has a file for each"),
    "laws/anneal/schedules.py": ("laws/anneal/test_anneal.py", "a decision by an annealing law"),
    "laws/files/*.py": ("laws/files/test_document.py", "parts of reading and writing law files"),
    "laws/mixture/*.py": ("laws/mixture/test_mixture.py", "parts of the mixture law and of decisions by it"),
    "laws/reproduce/*.py": ("laws/reproduce/test_published.py", "published results"),
    "laws/scaling/*.py": ("laws/scaling/test_scaling.py", "parts of the scaling law and of decisions by it"),
    "laws/solver.py": ("laws/test_estimators.py", "every law is fitted by it"),
    "laws/workbench/*.py": ("laws/test_workbench.py", "from tables to law files, tested as a whole"),
    "model/blocks/*.py": ("model/test_blocks.py", "every block goes through the same checks"),
    "model/operators/*.py": ("model/test_operators.py", "every operator is compared with PyTorch's"),
    "model/preference.py": ("train/test_trl.py", "losses are compared with TRL's"),
    "model/weights/*.py": ("model/test_weights.py", "round trips of every format"),
    "model/width.py": ("train/test_width.py", "its claim is about trained models"),
    "optim/*.py": ("train/test_optimizer.py", "an optimizer is compared by the steps of a run"),
    "parallel/*.py": ("parallel/test_equality.py", "a layout is compared with one process as a whole"),
    "path/worth.py": ("path/test_pages.py", "numbers of the report, compared in its data"),
    "plan/*.py": ("plan/test_step_time.py", "parts of one estimate, whose sums and limits are tested as a whole"),
    "post/chat_model.py": ("post/test_sft.py", "opens the model that is tuned"),
    "post/gym.py": ("post/test_synthesize.py", "one of the sources of questions"),
    "post/held_out.py": ("post/test_sft.py", "what is held out of a fine-tuning"),
    "post/merge/*.py": ("post/merge/test_merge_folders.py", "parts of merging, compared in merged folders"),
    "post/merge/methods/*.py": ("post/merge/test_merge_methods.py", "every method goes through the same checks"),
    "post/problems/*.py": ("post/problems/test_families.py", "every family goes through the same checks"),
    "post/verify/*.py": ("post/verify/test_verifiers.py", "every verifier goes through the same cases"),
    "publish/hubs/*.py": ("publish/test_sending.py", "every hub goes through the same faults, against a server"),
    "publish/lineage.py": ("publish/test_export.py", "walks back from a published folder"),
    "publish/transfer.py": ("publish/test_sending.py", "sends files to every hub"),
    "recipe/*.py": ("recipe/test_load_recipe.py", "parts of the documents, checked as they are read"),
    "report/*.py": ("report/test_report.py", "parts of one page"),
    "serve/*.py": ("serve/test_server.py", "parts of one server, which is tested as a process"),
    "store/*.py": ("store/test_store.py", "parts of one class"),
    "trackers/*.py": ("trackers/test_writers.py", "from a run's folder to a tracker, compared by what arrives there"),
    "trackers/importing/*.py": ("trackers/test_importing.py", "from files of other programs to a table, as a whole"),
    "trackers/writers/*.py": ("trackers/test_writers.py", "every writer goes through the same cases"),
    "train/answers.py": ("post/test_dpo.py", "the reference of a loss of pairs"),
    "train/engines/*.py": ("train/test_ranks.py", "engines are compared by the runs that they train"),
    "train/errors.py": ("train/test_loop.py", "how a run ends"),
    "train/hooks/*.py": ("train/test_hooks.py", "hooks act in a run"),
    "train/reporter.py": ("train/test_loop.py", "the events of a run"),
    "train/resume.py": ("train/test_kill.py", "where a killed run begins again"),
    "train/world.py": ("train/test_ranks.py", "how ranks agree"),
    "train/writing.py": ("train/test_folder.py", "what a full disk says"),
}


def untested() -> list[str]:
    """Modules that no test file is named after, and that no test imports."""
    lines = (line for file in TESTS.rglob("*.py") for line in file.read_text(encoding="utf-8").splitlines())
    text = "\n".join(line for line in lines if "armillary." in line or "from armillary " in line)
    found = []
    for file in sorted(SRC.rglob("*.py")):
        place = file.relative_to(SRC)
        if len(place.parts) == 1 or file.stem == "__init__":
            continue
        dotted = ".".join(["armillary", *place.with_suffix("").parts])
        parent, _, stem = dotted.rpartition(".")
        imported = re.compile(rf"{re.escape(dotted)}\b|from {re.escape(parent)} import [^\n]*\b{re.escape(stem)}\b")
        named = any(stem in test.stem for test in (TESTS / place.parts[0]).rglob("test_*.py"))
        if not named and not imported.search(text):
            found.append(place.as_posix())
    return found


def fits(module: str, pattern: str) -> bool:
    """Whether a module is one of a pattern's, in whose folder it lies."""
    return fnmatchcase(module, pattern) and module.count("/") == pattern.count("/")


def test_every_module_has_a_test_file_or_a_reason() -> None:
    modules = untested()
    unexplained = [module for module in modules if not any(fits(module, pattern) for pattern in TESTED_THROUGH)]
    assert unexplained == [], "give it a test file, or say in TESTED_THROUGH where it is tested"
    idle = [pattern for pattern in TESTED_THROUGH if not any(fits(module, pattern) for module in modules)]
    assert idle == [], "these have a test file by now: take them out of TESTED_THROUGH"


@pytest.mark.parametrize("test", sorted({test for test, _ in TESTED_THROUGH.values()}))
def test_the_tests_of_others_are_there(test: str) -> None:
    assert (TESTS / test).is_file()


def test_tests_mirror_the_rooms() -> None:
    rooms = {file.parent.name for file in SRC.glob("*/__init__.py")}
    folders = {file.relative_to(TESTS).parts[0] for file in TESTS.rglob("test_*.py") if file.parent != TESTS}
    assert folders <= rooms
    for room in folders:
        deeper = {f.relative_to(TESTS).parent for f in (TESTS / room).rglob("test_*.py")}
        assert [str(place) for place in deeper if not (SRC / place).is_dir()] == []


def test_no_two_test_files_have_one_name() -> None:
    """In folders that are no packages, pytest takes the second of two files of one name for the first."""
    loose = (file for file in TESTS.rglob("test_*.py") if not (file.parent / "__init__.py").exists())
    names = Counter(file.name for file in loose)
    assert [name for name, count in names.items() if count > 1] == []
