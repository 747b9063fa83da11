"""The HTTP API of one process: the doors, the routes that other packages bring, health, and the OpenAPI page.

Rules: assembly only. `/livez` answers while the process serves; `/readyz` is 503 with the reason while something that
the doors need is away. Every route needs an API key unless it says otherwise (`producers.auth.PUBLIC`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import msgspec
from litestar import Litestar, Response, Router, get
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ControllerRouterHandler

from pipeline.api_keys import Principal
from pipeline.ports import CatalogUnavailable, LogUnavailable
from producers.auth import OPENAPI_PATH, PUBLIC, Authentication
from producers.autumn import autumn_doors, autumn_router, autumn_usage_handlers
from producers.autumn_customers import autumn_customers_router
from producers.body import BODY_BYTES_MAX
from producers.body_limits import BodyLimits
from producers.bulk import bulk_door
from producers.description import DescribedJson
from producers.door import Api
from producers.intake import Intake
from producers.kable import kable_door
from producers.kana import kana_router
from producers.pages import pages_router
from producers.problems import EXCEPTION_HANDLERS, problem_response, unavailable
from producers.segment import segment_doors

Check = Callable[[], Awaitable[object]]
Lifespan = Callable[[Litestar], AbstractAsyncContextManager[None]]

_CHECK_TIMEOUT_S: Final = 3.0
_DESCRIPTION: Final = """Usage events come in through the doors of several dialects, and each counts once.

An answer 2xx means that Kafka has the event on all in-sync replicas. Sending again under the same id is always safe: it
counts once. Faults of a request name the field (`errors`); 429 and 503 say when to try again (`Retry-After`). GraphQL
has [a page of its own](graphql)."""


class Services(msgspec.Struct, frozen=True):
    """What the composition root passes in. `checks`: name -> coroutine that raises while the thing is away.
    `key_used` is told of each request with a good key, and must cost next to nothing."""

    intake: Intake
    checks: Mapping[str, Check]
    key_used: Callable[[Principal], None] | None = None


def build_app(
    services: Services,
    extra_routers: Sequence[ControllerRouterHandler] = (),
    *,
    version: str = "0",
    lifespan: Sequence[Lifespan] = (),
    stopping: Sequence[Callable[[], None]] = (),
) -> Api:
    """The application. `extra_routers` find `request.state.principal` and bring their own guards.

    `lifespan` starts and stops what the services stand on, in the process and event loop that serves. `stopping` ends
    answers that would go on for ever, before.
    """
    intake = services.intake
    return Api(
        [kable_door(intake), *autumn_doors(intake), *segment_doors(intake), bulk_door(intake)],
        BodyLimits(),
        Authentication(intake.catalog, services.key_used),
        stopping=stopping,
        route_handlers=[
            autumn_router(intake),
            autumn_customers_router(intake),
            kana_router(intake),
            pages_router(),
            _health_router(services.checks),
            *extra_routers,
            *autumn_usage_handlers(),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
        openapi_config=_openapi(version),
        request_max_body_size=BODY_BYTES_MAX,
        lifespan=list(lifespan),
        logging_config=None,
        debug=False,
    )


def _health_router(checks: Mapping[str, Check]) -> Router:
    @get("/livez", opt=PUBLIC, summary="Is the process alive", tags=["health"])
    async def livez() -> dict[str, str]:
        """Answers as long as the process serves."""
        return {"status": "live"}

    @get("/readyz", opt=PUBLIC, summary="Can events be received", tags=["health"])
    async def readyz() -> Response[bytes]:
        """200 while everything that the doors need is there, otherwise 503 with what is away."""
        reasons = await asyncio.gather(*(_reason(check) for check in checks.values()))
        away = {name: reason for name, reason in zip(checks, reasons, strict=True) if reason is not None}
        if away:
            told = "; ".join(f"{name}: {reason}" for name, reason in away.items())
            return problem_response(unavailable(told, 5, {"away": away}))
        body: dict[str, Any] = {"status": "ready", "checks": sorted(checks)}
        return Response(msgspec.json.encode(body), media_type="application/json")

    return Router(path="/", route_handlers=[livez, readyz])


async def _reason(check: Check) -> str | None:
    """Why the thing is not there, or None."""
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            await check()
    except TimeoutError:
        return f"no answer within {_CHECK_TIMEOUT_S:g} s"
    except (LogUnavailable, CatalogUnavailable, OSError) as error:
        return str(error)
    return None


def _openapi(version: str) -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Tallystream",
        version=version,
        description=_DESCRIPTION,
        path="/",
        render_plugins=[DescribedJson(path=OPENAPI_PATH)],
        components=Components(
            security_schemes={
                "bearer": SecurityScheme(
                    type="http",
                    scheme="bearer",
                    description="An API key, as `tally up` and `tally keys create` print it.",
                ),
                "api_key": SecurityScheme(
                    type="apiKey",
                    name="X-API-Key",
                    security_scheme_in="header",
                    description="The same key, one way or the other.",
                ),
            }
        ),
        security=[{"bearer": []}, {"api_key": []}],
    )
