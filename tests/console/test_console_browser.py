"""The console in a real browser: pages without errors, live updates, a run that is killed, a phone, the keyboard."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made import links

from armillary.recipe import RunSpec
from armillary.store import Store

webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (Path(CHROMIUM).exists() and Path(DRIVER).exists()), reason="apt-get install chromium chromium-driver"
    ),
]
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
PAGES = ("/", "/runs", "/predictions", "/goodput", "/examinations", "/lineage")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Any]:
    """Start `armillary console` over places; returns the beginning of its addresses."""
    started = []

    def start(*places: Path) -> str:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "armillary", "console", *map(str, places), "--port", "0"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found is not None, line
        return found[0]

    start.processes = started  # type: ignore[attr-defined]
    yield start
    for process in started:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def errors(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def live(browser: Any) -> str:
    return str(browser.execute_script("return document.getElementById('live').innerText"))


def wait_for(browser: Any, words: str, seconds: float = 30) -> None:
    """Wait until the page shows ``words``, without asking for it again."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if words in live(browser):
            return
        time.sleep(0.2)
    raise AssertionError(f"{words!r} is not in {live(browser)[:2000]!r}")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_pages_have_no_errors_and_fit_a_phone(built, serve, browser, width, scheme):
    home = serve(built)
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(home)
    errors(browser)
    first = {}
    for page in PAGES:
        for link in links(urllib.request.urlopen(home + page).read().decode()):
            first.setdefault(re.sub(r"[0-9a-f]{16}|\d+|\?.*", "#", link), link)
    for address in [*PAGES, *first.values()]:
        browser.get(home + address)
        assert errors(browser) == [], address
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, address
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, re.findall(r"\d+", ground)[:3])) < 200
    assert dark == (scheme == "dark")
    browser.get(f"{home}/set?theme={'light' if dark else 'dark'}&back=/runs")  # the switch is stronger than the system
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) != dark
    browser.delete_all_cookies()


def test_every_link_is_reached_by_the_keyboard(built, serve, browser):
    from selenium.webdriver import ActionChains, Keys

    browser.get(serve(built) + "/runs")
    seen = []
    for _ in range(24):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        seen.append(
            browser.execute_script("const on = document.activeElement; return on.name || on.textContent.trim()")
        )
    assert seen[0] == "Skip to the content" and "Predictions" in seen and "status" in seen and "mixture" in seen


def test_a_page_is_not_replaced_while_runs_are_chosen_on_it(built, serve, browser):
    browser.get(serve(built) + "/runs")
    may = "return htmx.trigger('#live', 'htmx:beforeRequest')"
    assert browser.execute_script(may)
    browser.execute_script("document.querySelector('input[type=checkbox][name=run]').click()")
    assert not browser.execute_script(may)
    browser.execute_script("document.querySelector('[data-all]').click()")
    boxes = "return [...document.querySelectorAll('#live input[name=run]')].every((box) => box.checked)"
    assert browser.execute_script(boxes)


def _train(folder: Path, corpus: Path, spec: dict[str, Any]) -> None:
    from armillary.corpus import Corpus
    from armillary.train import train_run

    store = Store(folder)
    run = RunSpec.model_validate(spec)
    store.add("watched", [run])
    store.mark_running(run.id)
    begun = time.monotonic()

    def progress(step: int) -> None:
        time.sleep(max(0.0, begun + 0.02 * step - time.monotonic()))  # 50 steps a second

    result = train_run(run, Corpus.open(corpus), store.run_folder(run.id), progress=progress)
    store.mark_done(result)
    store.close()


def test_a_run_is_watched_while_it_trains_and_when_it_is_killed(tiny_corpus, make_spec, serve, browser, tmp_path):
    folder = tmp_path / "results" / "store"
    Store(folder).close()
    spec = make_spec(steps=4000)
    home = serve(tmp_path / "results")
    browser.get(f"{home}/runs")
    assert "Nothing here yet" in live(browser)
    process = multiprocessing.get_context("spawn").Process(
        target=_train, args=(folder, tiny_corpus.path, spec.model_dump(mode="json"))
    )
    process.start()
    try:
        wait_for(browser, "running", 60)  # the idle page looks again every 15 s
        browser.get(f"{home}/runs/0.{spec.id}")
        wait_for(browser, "training loss", 30)
        first = browser.execute_script("return document.querySelector('polyline.line').getAttribute('points').length")
        ends = time.monotonic() + 30
        while time.monotonic() < ends:
            now = browser.execute_script(
                "const one = document.querySelector('polyline.line'); return one && one.getAttribute('points').length"
            )
            if now and now > 1.5 * first:
                break
            time.sleep(0.3)
        assert now > 1.5 * first  # the curve grows without a reload
        process.kill()
        process.join()
        wait_for(browser, "interrupted", 20)
        assert errors(browser) == []
        browser.get(f"{home}/studies?x=1")
        assert "watched" in live(browser) and "interrupted" in live(browser)
    finally:
        process.kill()


def test_a_page_whose_console_has_ended_says_so(workspace, serve, browser):
    browser.get(f"{serve(workspace)}/runs")
    shown = "return !document.getElementById('stale').hidden"
    assert not browser.execute_script(shown)
    serve.processes[-1].send_signal(signal.SIGINT)
    assert serve.processes[-1].wait(20) == 0
    ends = time.monotonic() + 40  # the idle page looks again every 15 s
    while not browser.execute_script(shown):
        assert time.monotonic() < ends
        time.sleep(0.3)
    assert "in total" in live(browser)  # what was read last stays


def test_a_store_that_is_deleted_while_it_is_watched_is_said_on_the_page(workspace, serve, browser):
    home = serve(workspace)
    browser.get(f"{home}/runs")
    shutil.move(workspace / "store" / "store.sqlite", workspace / "kept.sqlite")
    wait_for(browser, "is missing", 30)
    shutil.move(workspace / "kept.sqlite", workspace / "store" / "store.sqlite")
    wait_for(browser, "in total", 30)
