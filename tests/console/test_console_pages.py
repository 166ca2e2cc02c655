"""Every page over a whole workspace: what it shows, in both languages, and where its links lead."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made import links, metrics, write_run

import fakes
from armillary.console import places
from armillary.console.pages import examinations
from armillary.recipe import RunSpec
from armillary.store import Reader, RunFilter, Store
from armillary.study import Annealing, anneal_study, lr_study

PAGES = ("/", "/studies", "/runs", "/predictions", "/goodput", "/examinations", "/lineage", "/compare")


def ok(client, address):
    answer = client.get(address)
    assert answer.status_code == 200, (address, answer.text[:2000])
    assert 'class="problems"' not in answer.text, (address, re.findall(r"<li>(.*?)</li>", answer.text)[-3:])
    assert "&lt;span class=" not in answer.text, (address, "markup of the page is shown as text")
    return answer.text


def checked(client):
    """The page of predictions once the chain has been checked."""
    for _ in range(100):
        shown = client.get("/predictions").text
        if "Checking the chain" not in shown:
            return shown
        time.sleep(0.1)
    raise AssertionError("the chain is not checked")


def test_every_link_of_every_page_leads_to_a_page(built, client):
    here = client(built)
    waiting, seen, kinds = list(PAGES), set(), {}
    while waiting:
        address = waiting.pop(0)
        kind = re.sub(r"[0-9a-f]{16,}|\d[\d.]*", "#", address.split("?")[0]) + str(
            sorted(re.findall(r"[?&](\w+)=", address))
        )
        kinds[kind] = kinds.get(kind, 0) + 1
        if address in seen or kinds[kind] > 3:
            continue
        seen.add(address)
        waiting += links(ok(here, address))
    assert len(seen) > 40 and any(address.startswith("/lineage/0/corpus") for address in seen)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_pages_speak_the_language_of_the_browser_or_of_the_cookie(built, client, language):
    here = client(built)
    words = {"en": "Predictions", "zh": "预测"}
    asked = here.get("/runs", headers={"accept-language": f"{language}-XX,fr;q=0.5"}).text
    assert f">{words[language]}</a>" in asked
    answer = here.get(f"/set?language={language}&theme=dark&back=/goodput", follow_redirects=False)
    assert answer.headers["location"] == "/goodput"
    kept = here.get("/goodput").text
    assert f">{words[language]}</a>" in kept and 'data-theme="dark"' in kept


def test_the_studies_show_choice_candidates_law_and_design(built, client):
    here = client(built)
    first = ok(here, "/")
    assert "mixture study" in first and "<progress" in first
    (address,) = {link for link in links(first) if link.startswith("/outcomes/0/mixture/")}
    shown = ok(here, address)
    for part in ("Choice", "Candidates", "Law against measured", "Design", "Chosen: "):
        assert part in shown
    assert shown.count('<circle class="dot') + shown.count('<path class="dot') > 30
    (ladder,) = {link for link in links(first) if link.startswith("/outcomes/0/ladder/")}
    assert ok(here, ladder).count("depth ") >= 2


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_learning_rate_study_shows_its_choice_its_runs_and_the_rates(
    workspace, client, tmp_path, language, monkeypatch
):
    monkeypatch.setattr("armillary.study.lr._DRAWS", 20)
    store = Store(workspace / "store")
    lab = fakes.make_lab(tmp_path / "unused", fakes.make_recipe(study__lr={}))
    lab = replace(lab, store=store, executor=fakes.FakeExecutor(store))
    outcome = lr_study(lab, {"a": 0.4, "b": 0.3, "c": 0.3}, Annealing(share=0.2, shape="linear"))
    store.close()
    here = client(workspace)
    here.get(f"/set?language={language}&theme=dark&back=/")
    (address,) = {link for link in links(ok(here, "/")) if link.startswith("/outcomes/0/lr/")}
    shown = ok(here, address)
    assert {"en": "Peak learning rates", "zh": "峰值学习率"}[language] in shown
    assert shown.count('<circle class="dot') + shown.count('<path class="dot') >= len(outcome.points)
    assert shown.count("<tr>") > len(outcome.sizes) and "<pre>" not in shown
    assert ok(here, "/studies/0?name=lr")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_study_says_what_lies_beyond_the_edge(workspace, client, tmp_path, language):
    store = Store(workspace / "store")
    recipe = fakes.make_recipe(study__anneal={"shares": [0.05, 0.1], "reserve": 1})
    lab = fakes.make_lab(tmp_path / "unused", recipe)
    outcome = anneal_study(replace(lab, store=store, executor=fakes.FakeExecutor(store)), {"a": 0.4, "b": 0.6})
    store.close()
    assert outcome.rounds and outcome.stopped == "reserve"
    here = client(workspace)
    here.get(f"/set?language={language}&theme=dark&back=/")
    address = next(link for link in links(ok(here, "/")) if link.startswith("/outcomes/0/anneal/"))
    shown = ok(here, address)
    said = {"en": "Trained after the first results: ", "zh": "在得出首批结果之后训练"}
    end = {"en": "still at the edge of the tried range", "zh": "仍位于所试范围的边缘"}
    assert said[language] in shown and end[language] in shown


def test_a_store_that_appears_later_is_shown_and_numbers_stay(workspace, client, tmp_path, monkeypatch):
    monkeypatch.setattr(places, "_RESCAN_S", -1.0)
    watched = tmp_path / "watched"
    spec = next(file for file in (workspace / "store").rglob("spec.json"))
    write_run(watched / "alone", RunSpec.model_validate_json(spec.read_text()))
    here = client(watched)
    assert "alone" in ok(here, "/runs") and not any("/studies/" in link for link in links(ok(here, "/")))
    shutil.copytree(workspace, watched / "later")
    address = next(link for link in links(ok(here, "/")) if link.startswith("/studies/"))
    assert address.startswith("/studies/1?") and ok(here, address)
    shown = ok(here, "/runs?store=0")
    assert "alone" in shown and "later" in ok(here, "/runs?store=1")


def test_predictions_show_interval_verdict_calibration_chain_and_budget(built, client):
    shown = checked(client(built))
    assert "90 % expected" in shown and re.search(r"is intact: <span class=\"value\">\d+", shown)
    assert "✓ inside" in shown or "✕ outside" in shown
    assert re.search(r"<span class=\"value\">1 min 40 s</span> of <span class=\"value\">6 min 00 s</span>", shown)


def test_a_changed_record_breaks_the_chain_on_the_page(workspace, client):
    with sqlite3.connect(workspace / "store" / "store.sqlite") as db:
        db.execute("DROP TRIGGER predictions_UPDATE")
        db.execute("UPDATE predictions SET content = replace(content, '\"target\"', '\"other\"')")
    here = client(workspace)
    shown = checked(here)
    assert "The chain of records is broken" in shown and "was changed after it was recorded" in shown


def test_runs_are_filtered_and_paged_by_key(built, client):
    here = client(built)
    every = {row.run for row in Reader(built / "store").page(RunFilter(), 1000)}
    seen, address = [], "/runs?per=50"
    while address:
        shown = ok(here, address)
        seen += re.findall(r'name="run" value="0\.([0-9a-f]{16})"', shown)
        older = re.search(r'rel="next" href="([^"]+)"', shown)
        address = older and older[1].replace("&amp;", "&")
    assert len(seen) == len(set(seen)) and set(seen) == every
    heavy = ok(here, "/runs?mixture=a%3E%3D0.5&per=200")
    found = re.findall(r'name="run" value="0\.([0-9a-f]{16})"', heavy)
    store = Reader(built / "store")
    assert found and set(found) == {
        run for run in every if RunSpec.model_validate(store.spec_contents([run])[run]).mixture[0].weights["a"] >= 0.5
    }
    assert "is not a condition on a domain" in here.get("/runs?mixture=nonsense").text
    for query in ("shape=1x8", "tag=seed-1%20adamw", "study=ladder", "status=done", f"run={seen[0][:4]}"):
        assert re.search(r'name="run" value="0\.', ok(here, f"/runs?{query}")), query
    assert "Nothing here" in ok(here, "/runs?shape=9x9")


def test_runs_are_compared_over_steps_tokens_flops_and_time(built, client):
    here = client(built)
    folders = sorted(path.name for path in (built / "store" / "runs").iterdir())
    chosen = "&".join(f"run=0.{run}" for run in folders)
    for over in ("step", "tokens", "flops", "time"):
        for what in ("loss", "grad_norm", "lr", "tokens_per_s", "flops_per_s", "validation/a/loss"):
            shown = ok(here, f"/compare?{chosen}&x={over}&y={what}&log=1")
            assert shown.count('<polyline class="line') >= len(folders), (over, what)
    shown = ok(here, f"/compare?{chosen}&y=mfu&hardware=h100")
    assert '<polyline class="line' in shown
    assert "mixture.0.weights.a" in shown


def test_goodput_shows_accounts_faults_heat_and_memory(built, client):
    here = client(built)
    address = next(link for link in links(ok(here, "/goodput")) if link.startswith("/goodput/"))
    shown = ok(here, address)
    for part in ("restart", "rank 1 was killed", "Step times by rank", "2.50", 'class="a-productive"', 'class="h9"'):
        assert part in shown, part


def test_examinations_are_ranked_browsed_and_paired(built, client):
    here = client(built)
    shown = ok(here, "/examinations")
    assert "Leaderboard" in shown and "1 of 30 items overlap" in shown
    keys = re.findall(r'<option value="([0-9a-f]{16})"', shown)[:2]
    paired = ok(here, f"/examinations?with={keys[0]}&with={keys[1]}")
    assert re.search(r"\[[+−]0\.\d+, [+−]0\.\d+\]", paired)
    wrong = ok(here, f"/examinations/{keys[0]}?only=wrong&subset=words")
    assert wrong.count('class="t mono"') in (3, 11)
    assert ok(here, f"/examinations/{keys[0]}?only=contaminated").count('class="t mono"') == 1


def test_the_lineage_leads_from_a_file_to_the_runs_that_argued_for_it(built, client):
    here = client(built)
    address = next(link for link in links(ok(here, "/lineage")) if "/publication/" in link)
    shown = ok(here, address)
    assert "trained on" not in shown.split("Everything")[0] and "written by" in shown and "CC BY 4.0" in shown
    run = next(link for link in links(shown) if "/lineage/0/run/" in link)
    assert "predicted by" in ok(here, run) and "argued by" in ok(
        here, next(x for x in links(ok(here, run)) if "/prediction/" in x)
    )


def test_a_run_that_trains_shows_what_it_has_written_so_far(workspace, client):
    store = Store(workspace / "store")
    run = next(iter(store.study_runs("mixture")))
    folder = store.run_folder(run)
    for path in folder.iterdir() if folder.is_dir() else ():
        path.unlink()
    (folder / "metrics").mkdir(parents=True)
    table = metrics(100)
    pq.write_table(table.slice(0, 60), folder / "metrics" / "rows-1.parquet")
    pq.write_table(table.slice(50, 50), folder / "metrics" / "live.parquet")  # some rows are in both
    here = client(workspace)
    shown = ok(here, f"/runs/0.{run}")
    assert '<polyline class="line' in shown
    (folder / "metrics" / "live.parquet").write_bytes(b"PAR1 torn")
    assert '<polyline class="line' in ok(here, f"/runs/0.{run}")


def test_the_console_starts_and_serves_without_torch(built):
    program = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'torch': raise ImportError('torch is blocked')\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from starlette.testclient import TestClient\n"
        "from armillary.console import ConsoleOptions, create_app\n"
        f"client = TestClient(create_app(ConsoleOptions(({str(built)!r},))), base_url='http://localhost')\n"
        f"print([client.get(address).status_code for address in {PAGES!r}], 'torch' in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.stdout == f"{[200] * len(PAGES)} False\n", done.stderr[-2000:]


def test_the_store_is_not_written_to(workspace, client):
    def state() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in workspace.rglob("*") if path.is_file()}

    before = state()
    here = client(workspace)
    for address in PAGES:
        ok(here, address)
    assert state() == before


def test_folders_of_runs_without_a_store_are_shown(built, client, tmp_path):
    runs = sorted((built / "store" / "runs").iterdir())[:2]
    for run in runs:
        shutil.copytree(run, tmp_path / "large" / f"<b>{run.name}")
    (tmp_path / "large" / "circle").symlink_to(tmp_path)
    for place in (tmp_path, tmp_path / "large", tmp_path / "large" / f"<b>{runs[0].name}"):
        here = client(place)
        shown = ok(here, "/runs")
        assert "&lt;b&gt;" + runs[0].name in shown and "status-interrupted" in shown
        for link in {link for link in links(shown) if link.startswith(("/runs/", "/compare"))}:
            for further in links(ok(here, link)):
                ok(here, further)


def test_log_likelihoods_are_short_and_texts_whole():
    assert examinations._shown(("-102.66062915263566", "-9.5")) == ["-102.661", "-9.5"]
    assert examinations._shown(("3.14159265",)) == ["3.14159265"]  # an answer
    assert examinations._shown(("3.14159265", "pi")) == ["3.14159265", "pi"]
