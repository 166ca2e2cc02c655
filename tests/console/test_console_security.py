"""Who may see the console, and what hostile names, addresses and files can do: nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from html import unescape
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from made import examination

from armillary.console.security import COOKIE, check_token
from armillary.evaluate import write_examination
from armillary.recipe import UsageError
from armillary.store import Reader, Store

FIELDS = (
    *(("/runs", field) for field in ("study", "mixture", "tag", "shape", "run", "before", "store", "per")),
    *(("/compare", field) for field in ("run", "y", "x", "smooth", "hardware")),
    *(("/predictions", "before"), ("/examinations", "with"), ("/", "x")),
)
TOKEN = "0123456789abcdef-secret"
HOSTILE = (
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "x" * 3000,
    "\u202eevil\u2066",
    "\"onload='x'",
    "{{ 7*7 }}",
    "a\x00b",
)


def test_only_hosts_of_this_machine_are_served(built, client):
    here = client(built)
    for host in ("localhost", "localhost:8321", "127.0.0.1:8321", "[::1]:8321"):
        assert here.get("/", headers={"host": host}).status_code == 200, host
    for host in ("evil.example", "localhost.evil.example:8321", "10.0.0.1", "127.0.0.1.nip.io", ""):
        assert here.get("/", headers={"host": host}).status_code == 421, host


def test_another_host_needs_a_token_that_is_long(built):
    for token in (None, "", "short"):
        with pytest.raises(UsageError, match="ARMILLARY_CONSOLE_TOKEN"):
            check_token("0.0.0.0", token)
    assert check_token("127.0.0.1", None) is None and check_token("0.0.0.0", TOKEN) == TOKEN


def test_with_a_token_nothing_is_shown_without_it(built, client):
    here = client(built, token=TOKEN, base="http://10.1.2.3:8321")
    for address in ("/", "/runs", "/predictions", "/runs?token=wrong", "/nothing"):
        answer = here.get(address, follow_redirects=False)
        assert answer.status_code == 303 and answer.headers["location"] == "/token", address
    assert here.get("/runs", headers={"authorization": "Bearer wrong"}, follow_redirects=False).status_code == 303
    assert here.get("/runs", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert "<table" not in here.get("/token").text
    answer = here.get(f"/runs?token={TOKEN}&status=done", follow_redirects=False)
    assert answer.headers["location"] == "/runs?status=done"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower() and TOKEN not in cookie
    assert here.get("/runs").status_code == 200  # the client has kept the cookie
    here.cookies.clear()
    assert here.get("/runs", headers={"cookie": f"{COOKIE}={'0' * 64}"}, follow_redirects=False).status_code == 303
    answer = here.post("/token", content=f"token={TOKEN}", follow_redirects=False)
    assert answer.status_code == 303 and COOKIE in answer.headers["set-cookie"]


@pytest.mark.parametrize("host", ["10.1.2.3:8321", "console.team.example", "console-0.console.svc.cluster.local:8321"])
def test_with_a_token_any_name_of_the_machine_is_served(built, client, host):
    here = client(built, token=TOKEN)
    assert here.get("/runs", headers={"host": host, "authorization": f"Bearer {TOKEN}"}).status_code == 200
    refused = here.get("/runs", headers={"host": host}, follow_redirects=False)
    assert refused.status_code == 303 and refused.headers["location"] == "/token"


def test_every_answer_forbids_foreign_and_inline_scripts(built, client):
    here = client(built)
    for address in ("/", "/nothing", "/static/console.js", "/runs"):
        policy = here.get(address).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    html = here.get("/runs").text
    assert not re.search(r"<script(?![^>]* src=)|\son\w+=|\sstyle=|<style", html)
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", html)


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch"])
def test_only_reading_is_allowed(built, client, method):
    assert getattr(client(built), method)("/runs").status_code in (404, 405)


def test_no_address_is_a_path(built, client):
    here = client(built)
    for address in (
        "/static/../app.py", "/static/%2e%2e/app.py", "/runs/0...%2f..%2fetc", "/runs/0.../../x",
        "/lineage/0/publication/..%2f..%2fetc", "/lineage/9/run/x", "/outcomes/0/mixture/..", "/goodput/-1.x",
        "/studies/0?name=../../x", "/runs/99999999999.x", "/outcomes/0/%00/%00", "/studies/٠?name=x",
    ):  # fmt: skip
        answer = here.get(address)
        assert answer.status_code in (404, 405) and "root:" not in answer.text, address
    for back in (
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "\\\\evil.example",
        "/x%0d%0aset-cookie:a",
    ):
        answer = here.get("/set", params={"theme": "dark", "back": back}, follow_redirects=False)
        assert re.match(r"/(?![/\\])", answer.headers["location"]), back
        assert "evil" not in answer.headers.get("set-cookie", "")


def test_hostile_names_are_shown_as_text(workspace, client, tmp_path):
    store = Store(workspace / "store")
    first, *runs = store.study_runs("mixture")
    weights = {name: 1 / len(HOSTILE) for name in HOSTILE}
    with store.engine.begin() as db:
        for name, run in zip(HOSTILE, runs, strict=False):
            db.execute(sa.text("UPDATE runs SET error = :e, status = 'failed' WHERE id = :r"), {"e": name, "r": run})
            db.execute(sa.text("INSERT INTO study_runs VALUES (:s, :r)"), {"s": name[:60], "r": run})
        values = {"m": json.dumps(weights), "r": runs[0]}
        db.execute(
            sa.text("UPDATE run_facts SET mixture = :m, tags = :t WHERE run = :r"), values | {"t": f" {HOSTILE[0]} "}
        )
    store.close()
    hostile = examination(HOSTILE[0], 3)
    write_examination(workspace / "examination" / "<b>", hostile)
    here = client(workspace)
    addresses = ["/", "/runs?per=200", "/examinations", f"/runs/0.{runs[0]}", "/goodput", f"/lineage/0/run/{first}"]
    addresses += re.findall(r'href="(/studies/0[^"]+)"', here.get("/").text)
    for name in HOSTILE:
        addresses += [f"{page}?{field}={quote(name)}" for page, field in FIELDS]
    for address in addresses:
        answer = here.get(unescape(address))
        assert answer.status_code == 200, address
        assert "<script>alert" not in answer.text and "49" not in re.findall(r"\{\{ 7\*7 \}\}|>49<", answer.text)
        assert "\x00" not in answer.text and "onload='x'\"" not in answer.text.replace("&#39;", "")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in here.get("/runs?per=200").text


KEY = {"machine": "m", "context_length": 1, "batch_sequences": 1, "precision": "x", "how": "y"}


def broken(workspace: Path, how: str) -> str:
    """Damage a store; the words that the page must have."""
    file = workspace / "store" / "store.sqlite"
    if how == "torn":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return "is truncated"
    if how == "newer":
        with sqlite3.connect(file) as db:
            db.execute("UPDATE format SET version = 99")
        return "store format 99"
    if how == "deleted":
        file.unlink()
        return "is missing"
    if how == "replaced":
        file.write_bytes(b"not a database at all, but a text that is long enough" * 9)
        return "not a database"
    if how == "foreign":
        file.unlink()
        with sqlite3.connect(file) as db:
            db.execute("CREATE TABLE photos (id)")
        return "another program"
    file.unlink()
    file.mkdir()
    return "not a file"


@pytest.mark.parametrize("how", ["torn", "newer", "deleted", "replaced", "foreign", "folder"])
def test_a_store_that_breaks_while_it_is_watched_is_one_line_and_the_others_go_on(built, workspace, client, how):
    here = client(workspace, built)
    assert here.get("/runs").text.count('class="problems"') == 0
    kept = workspace / "store" / "kept.sqlite"
    shutil.copy(workspace / "store" / "store.sqlite", kept)
    said = broken(workspace, how)
    for address in ("/", "/runs", "/predictions", "/goodput", "/examinations"):
        shown = here.get(address).text
        (problems,) = re.findall(r'<div class="problems".*?</div>', shown, re.DOTALL)
        assert said in problems and problems.count("<li>") == 1, (address, problems)
        assert "Traceback" not in shown
    assert re.search(r'name="run" value="1\.', here.get("/runs").text)
    file = workspace / "store" / "store.sqlite"
    shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
    shutil.copy(kept, file)
    assert 'class="problems"' not in here.get("/runs").text  # it is back


def test_a_locked_store_is_one_line(workspace, client):
    file = workspace / "store" / "store.sqlite"
    here = client(workspace)
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA journal_mode=DELETE")
        db.execute("BEGIN EXCLUSIVE")
        db.execute("UPDATE runs SET attempts = 9")
        shown = here.get("/runs").text
    assert "was locked for 1 s" in shown
    assert 'class="problems"' not in here.get("/runs").text


def test_a_store_that_is_written_all_the_time_is_read(workspace, client):
    store = Store(workspace / "store")
    here, ends = client(workspace), threading.Event()

    def write() -> None:
        number = 0
        while not ends.is_set():
            store.record_rate(
                KEY | {"shape": str(number % 9)},
                tokens_per_s=1.0, seconds=1.0, recorded_at=time.time(), about={},
            )  # fmt: skip
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(10):
            for address in ("/", "/runs", "/predictions"):
                assert 'class="problems"' not in here.get(address).text
    finally:
        ends.set()
        thread.join()


def test_a_store_of_an_older_format_is_read_and_stays_as_it_is(tmp_path, client):
    folder = tmp_path / "old"
    folder.mkdir()
    with sqlite3.connect(folder / "store.sqlite") as db:
        db.executescript((Path(__file__).parents[1] / "store" / "store-format-1.sql").read_text(encoding="utf-8"))
    before = (folder / "store.sqlite").read_bytes()
    here = client(folder)
    for address in ("/", "/runs", "/predictions", "/goodput", "/runs?shape=1x16", "/runs?tag=adamw"):
        shown = here.get(address)
        assert shown.status_code == 200 and 'class="problems"' not in shown.text, (address, shown.text[-1500:])
    assert (folder / "store.sqlite").read_bytes() == before
    runs = Reader(folder).counts()
    assert sum(runs.values()) > 0 and "format 1 has no chain" in here.get("/predictions").text


def test_wrong_arguments_are_one_line(tmp_path):
    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "armillary", "console", *arguments],
            capture_output=True, text=True, check=False, timeout=60,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        )  # fmt: skip

    done = call(str(tmp_path / "nothing"))
    assert done.returncode == 2 and "no such file or folder" in " ".join(done.stderr.split())
    done = call(str(tmp_path), "--host", "0.0.0.0")
    assert done.returncode == 2 and "ARMILLARY_CONSOLE_TOKEN" in done.stderr and "Traceback" not in done.stderr
