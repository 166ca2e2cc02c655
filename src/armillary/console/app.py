"""The application: routes, the parts that all pages share, and the rendering of a page.

Pages are plain functions that run in threads, since they read files and databases. A source that cannot be read
becomes a line on the page (``Page.problems``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import armillary
from armillary.console import security, svg
from armillary.console.places import Watch, watch
from armillary.console.text import Words, words_of
from armillary.recipe import LANGUAGES, ArmillaryError, Language
from armillary.report import format as fmt

NAVIGATION = ("studies", "runs", "predictions", "goodput", "examinations", "lineage")
THEMES = ("auto", "light", "dark")
_BUSY_S, _IDLE_S = 3, 15  # until a page is requested again
_CONTROL = dict.fromkeys((*range(9), 11, *range(14, 32), *range(127, 160)), "�")


@dataclass(frozen=True)
class ConsoleOptions:
    """The places to watch (see `places.watch`), and the language for browsers that request none of ours."""

    places: tuple[str, ...]
    language: Language = "en"


@dataclass
class Page:
    """The input of a page function: the request's fields, the words, and the problems met while reading."""

    watch: Watch
    words: Words
    fields: Mapping[str, str]
    request: Request
    problems: list[str] = field(default_factory=list)

    def get(self, name: str, default: str = "") -> str:
        """A query field, stripped."""
        return self.fields.get(name, default).strip()[:400]

    def all(self, name: str) -> list[str]:
        """All values of a query field."""
        return self.request.query_params.getlist(name)

    def link(self, **changes: Any) -> str:
        """This URL with changed query fields; None removes a field."""
        others = [(name, value) for name, value in self.request.query_params.multi_items() if name not in changes]
        new = [(name, str(value)) for name, value in changes.items() if value is not None]
        query = urlencode([*others, *new])
        return self.request.url.path + (f"?{query}" if query else "")


def missing() -> HTTPException:
    """The exception of a page whose subject does not exist."""
    return HTTPException(404)


def create_app(options: ConsoleOptions, token: str | None = None) -> Starlette:
    """The application over the places of ``options``, for requests with ``token``, or from this machine if it is None.

    Raises:
        UsageError: a place does not exist.
    """
    from armillary.console.pages import (
        compare,
        examinations,
        goodput,
        lineage,
        predictions,
        runs,
        studies,
    )

    routes = [
        Route("/", page("studies", studies.studies)),
        Route("/studies", page("studies", studies.studies)),
        Route("/studies/{place}", page("studies", studies.study, "study")),
        Route("/outcomes/{place}/{name}/{key}", page("studies", studies.outcome, "outcome")),
        Route("/runs", page("runs", runs.runs)),
        Route("/runs/{run}", page("runs", runs.run, "run")),
        Route("/compare", page("runs", compare.compare, "compare")),
        Route("/predictions", page("predictions", predictions.predictions)),
        Route("/goodput", page("goodput", goodput.goodput)),
        Route("/goodput/{run}", page("goodput", goodput.run_goodput, "goodput_run")),
        Route("/examinations", page("examinations", examinations.examinations)),
        Route("/examinations/{examination}", page("examinations", examinations.items, "items")),
        Route("/lineage", page("lineage", lineage.lineage)),
        Route("/lineage/{place}/{kind}/{name}", page("lineage", lineage.node, "node")),
        Route("/set", settings),
        Route("/token", page("token", lambda page: {"name": security.TOKEN})),
        Mount("/static", _Static(directory=Path(__file__).with_name("static"))),
    ]
    handlers: dict[Any, Callable[..., Response]] = {404: _not_found, 405: _not_found, Exception: _broken}
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(cast(Any, security.Guard), token=token),
            Middleware(GZipMiddleware, minimum_size=2000, compresslevel=4),
        ],
        exception_handlers=handlers,
    )
    app.state.watch, app.state.options = watch(options.places), options
    return app


class _Static(StaticFiles):
    """Static files, which a browser may cache for an hour."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        answer = super().file_response(*args, **kwargs)
        answer.headers["Cache-Control"] = "max-age=3600"
        return answer


def page(name: str, act: Callable[[Page], Mapping[str, Any]], template: str = "") -> Callable[[Request], Response]:
    """The endpoint that renders ``template`` (default: the name of the page) with the values that ``act`` returns."""

    @functools.wraps(act)
    def endpoint(request: Request) -> Response:
        asked = _page(request)
        try:
            values = act(asked)
        except (ArmillaryError, OSError) as error:
            asked.problems.append(str(error))
            return _html(asked, "problem.html.j2", {"here": name, "status": 200})
        return _html(asked, f"{template or name}.html.j2", {"here": name, **values})

    return endpoint


def settings(request: Request) -> Response:
    """Store the theme or the language in a cookie, and return to the page."""
    back = request.query_params.get("back", "/")
    answer = RedirectResponse("/" + back.lstrip("/\\").replace("\r", "").replace("\n", ""), 303)
    for name, known in (("theme", THEMES), ("language", LANGUAGES)):
        value = request.query_params.get(name, "")
        if value in known:
            answer.set_cookie(name, value, max_age=365 * 86400, samesite="lax", httponly=True)
    return answer


def _page(request: Request) -> Page:
    options: ConsoleOptions = request.app.state.options
    language = request.cookies.get("language", "")
    if language not in LANGUAGES:
        wishes = [part.split(";")[0].strip().lower() for part in request.headers.get("accept-language", "").split(",")]
        language = next(
            (known for wish in wishes for known in LANGUAGES if wish.split("-")[0] == known), options.language
        )
    return Page(request.app.state.watch, words_of(language), request.query_params, request)


def _html(asked: Page, template: str, values: Mapping[str, Any]) -> Response:
    request, theme = asked.request, asked.request.cookies.get("theme", "auto")
    busy = bool(values.get("busy"))
    html = (
        _environment()
        .get_template(template)
        .render(
            t=asked.words,
            fmt=fmt,
            svg=svg,
            page=asked,
            navigation=NAVIGATION,
            themes=THEMES,
            theme=theme if theme in THEMES else "auto",
            languages=LANGUAGES,
            back=request.url.path + (f"?{request.url.query}" if request.url.query else ""),
            again_s=_BUSY_S if busy else _IDLE_S,
            version=armillary.__version__,
            **{name: value for name, value in values.items() if name not in ("busy", "status")},
        )
    )
    return HTMLResponse(html.translate(_CONTROL).encode("utf-8", "replace"), int(values.get("status", 200)))


def _not_found(request: Request, error: Exception) -> Response:
    asked = _page(request)
    return _html(asked, "problem.html.j2", {"here": "", "message": asked.words("gone"), "status": 404})


def _broken(request: Request, error: Exception) -> Response:
    asked = _page(request)
    message = asked.words("failed", what=f"{type(error).__name__}: {error}"[:300])
    return _html(asked, "problem.html.j2", {"here": "", "message": message, "status": 500})


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("armillary.console", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
