"""Folders as people have them: what is not text is not read, never hangs, and is counted."""

import errno
import os
import socket
from types import SimpleNamespace

import pytest

from armillary.corpus import build_corpus, find, sources
from armillary.corpus.find import find_files
from armillary.corpus.problems import Problem
from armillary.recipe import CorpusSpec, DomainSpec, UsageError


@pytest.fixture
def folder(tmp_path):
    """A source folder with two good files."""
    source = tmp_path / "text"
    put(source / "a.txt")
    put(source / "deep" / "b.txt")
    return source


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"text of {path.name}")
    return path


def listed(source, own=()):
    """Names of the files found, relative to the source, and the reasons for what was left out, with their number."""
    files, problems = find_files("d", DomainSpec(source=str(source)), own)
    counts = {p.what: int(p.detail.split()[1]) for p in problems}
    return [os.path.relpath(file.path, source) for file in files], counts


GOOD = ["a.txt", "deep/b.txt"]


@pytest.mark.parametrize(
    "name",
    [
        ".venv/lib/site-packages/pkg/x.py",
        ".git/description.txt",
        ".ipynb_checkpoints/n.py",
        "._a.txt",
        "__MACOSX/._a.txt",
        "_temporary/0/part-0.txt",
        "__pycache__/x.py",
        "_delta_log/1.checkpoint.parquet",
        "_SUCCESS",
        "part-0.crc",
    ],
)
def test_hidden_and_temporary_names_are_counted_and_not_read(folder, name):
    put(folder / name)
    assert listed(folder) == (GOOD, {find.HIDDEN: 1})


@pytest.mark.parametrize(
    "name",
    [
        "venv/lib/python3.11/site-packages/pkg/x.py",
        "env/Lib/x.py",
        "my-environment/bin/activate_this.py",
        "site/node_modules/pkg/README.md",
        "lib/site-packages/pkg/x.py",
        "lib/dist-packages/pkg/x.py",
        "conda/share/doc/x.txt",
    ],
)
def test_installed_packages_are_counted_and_not_read(folder, name):
    put(folder / name)
    for environment in ("venv", "env", "my-environment"):
        if name.startswith(f"{environment}/"):
            put(folder / environment / "pyvenv.cfg")
    if name.startswith("conda/"):
        put(folder / "conda" / "conda-meta" / "history")
    assert listed(folder) == (GOOD, {find.PACKAGES: 1})
    listed_remotely = find_files("d", DomainSpec(source=f"file://{folder}"))
    assert [os.path.relpath(f.path.removeprefix("file://"), folder) for f in listed_remotely[0]] == GOOD
    (folder.parent / "outside").mkdir()
    (folder.parent / "outside" / "linked").symlink_to(folder / name.split("/")[0])
    put(folder.parent / "outside" / "c.txt")
    names, counts = listed(folder.parent / "outside")
    assert names == ["c.txt"] and counts == {find.PACKAGES: 1}


def test_folders_that_are_only_named_as_environments_are_read(folder):
    for name in ("venv/a.md", "env/notes.txt", "packages/b.md", "node_modules.md"):
        put(folder / name)
    assert len(listed(folder)[0]) == 6


@pytest.mark.parametrize("name", ["venv", "node_modules", "site-packages"])
def test_installed_packages_that_the_recipe_names_are_read_with_all_below(tmp_path, name):
    put(tmp_path / name / "a.txt")
    put(tmp_path / name / "pkg" / "node_modules" / "b.md")
    put(tmp_path / name / "lib" / "site-packages" / "c.py")
    if name == "venv":
        put(tmp_path / name / "pyvenv.cfg")
    files = find_files("d", DomainSpec(source=str(tmp_path / name)))[0]
    assert len(files) == len(find_files("d", DomainSpec(source=f"file://{tmp_path / name}"))[0]) == 3


def test_names_that_only_look_odd_are_read(folder):
    for name in ("__init__.py", "_posts/p.md", "_config.md", "a.txt.md", "UPPER.TXT"):
        put(folder / name)
    assert listed(folder)[0] == sorted([*GOOD, "__init__.py", "_posts/p.md", "_config.md", "a.txt.md", "UPPER.TXT"])


def test_a_hidden_folder_that_the_recipe_names_is_read(tmp_path):
    put(tmp_path / ".cache" / "a.txt")
    assert listed(tmp_path / ".cache") == (["a.txt"], {})


@pytest.mark.parametrize(("number", "passing"), [(errno.ESTALE, True), (errno.EIO, True), (errno.ELOOP, False)])
def test_a_file_that_cannot_be_looked_at_now_is_not_called_a_dead_link(number, passing, folder):
    def stat():
        raise OSError(number, os.strerror(number))

    listing = find._Listing()
    walk = find._Walk(str(folder), set(), listing)
    walk._take(SimpleNamespace(name="x.txt", path=str(folder / "x.txt"), stat=stat))
    assert [problem.passing for problem in listing.problems] == [True] * passing
    assert list(listing.left_out) == [find.DEAD_LINKS] * (not passing)


@pytest.mark.parametrize("target", ["/nowhere/texts", "texts"])
def test_a_source_that_is_a_dead_link_is_named_as_one(target, folder, tmp_path):
    (tmp_path / "texts").symlink_to(target)  # the second leads to itself
    spec = {"domains": {"d": {"source": str(tmp_path / "texts")}, "e": {"source": str(folder)}}}
    with pytest.raises(UsageError, match=f"domain 'd': source .*is a link to {target}, which cannot be reached"):
        build_corpus(CorpusSpec.model_validate(spec), tmp_path / "corpus", workers=1)


def test_links(folder, tmp_path):
    (folder / "dangling.txt").symlink_to("/nowhere/blob")
    (folder / "self").symlink_to("self")
    (folder / "up").symlink_to("..")
    (folder / "again").symlink_to("deep")
    (folder / "same.txt").symlink_to("a.txt")
    outside = put(tmp_path / "elsewhere" / "sub" / "c.txt").parent.parent
    (folder / "linked").symlink_to(outside)
    (folder / "linked-too").symlink_to(outside / "sub")
    (folder / "one.txt").symlink_to(put(tmp_path / "single.txt"))
    names, left_out = listed(folder)
    assert names == sorted([*GOOD, "linked/sub/c.txt", "one.txt"])
    assert left_out == {find.DEAD_LINKS: 2, find.KNOWN_LINKS: 4}


def test_a_source_that_is_itself_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert listed(tmp_path / "link") == (GOOD, {})


def test_pipes_sockets_and_devices_are_never_opened(folder, tmp_path):
    os.mkfifo(folder / "feed.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "s.txt"))
    (folder / "null.txt").symlink_to("/dev/null")
    assert listed(folder) == (GOOD, {find.NOT_FILES: 3})
    with pytest.raises(UsageError, match=r"is neither a file nor a folder \(a pipe, a socket or a device\); give"):
        listed(folder / "feed.txt")


def test_what_this_program_wrote_is_not_text(folder, tmp_path):
    for own in (
        "out/store/store.sqlite",
        "team/store/runs/x/a.md",
        "corpora/index/f.json",
        "run/spec.json",
        "model/config.json",
        "tuned/model/config.json",
        "merged/config.json",
        "questions/stage.json",
        "examined/results.json",
        "taught/held-out/stage.json",
    ):
        put(folder / own)
    for beside in ("corpora/.lock", "run/events.jsonl", "model/lineage.json", "model/README.md", "out/notes.md"):
        put(folder / beside)
    for beside in (
        "tuned/settings.json",
        "tuned/notes.md",
        "merged/record.json",
        "questions/items.jsonl",
        "examined/items/cloze.jsonl",
        "taught/questions/stage.json",
        "taught/gain/0.5.jsonl",
    ):
        put(folder / beside)
    assert listed(folder) == (GOOD, {find.OWN: 10})
    put(folder / "new" / "build.txt")
    assert listed(folder, [folder / "new"]) == (GOOD, {find.OWN: 11})


def test_names_in_any_encoding_are_read_and_printed_on_one_line(folder):
    for name in (b"caf\xe9.txt", b"\xb2\xe2/gbk.txt", b"new\nline.txt", b"\x1b[31mred.txt"):
        path = folder / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\xff")
    files, _ = find_files("d", DomainSpec(source=str(folder)))
    found = [item for file in files for item in sources.read_documents(file, "text")]
    places = [item.where for item in found if isinstance(item, Problem)]
    assert len(files) == 6 and len(places) == 4
    assert all(place.isprintable() and place.encode() for place in places)
    assert f"{folder}/caf\\xe9.txt:1" in places


def test_only_hidden_files_is_an_error_that_says_so(tmp_path):
    put(tmp_path / ".git" / "a.txt")
    with pytest.raises(UsageError, match=r"no file of a known kind; .* hidden or temporary, not read: 1 \(\.git\)"):
        listed(tmp_path)
