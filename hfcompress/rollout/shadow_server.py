"""shadow --serve: the shadow test over HTTP on this machine's loopback, by Starlette and uvicorn.

POST / with {"input": ..., "user": ..., "group": ..., "outcome": {...}} gives the old model's label and score; GET / is
the running page, GET /state the same as JSON. The new model is asked after the answer has left.
"""

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hfcompress.errors import UserError, needs
from hfcompress.rollout.http_limits import (
    IDLE_SECONDS,
    LARGEST_BODY,
    LimitedProtocol,
    Refused,
    body_of,
    require_own_origin,
)
from hfcompress.rollout.serving import ShadowTest, page, request_of

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
MOST_WAITING = 400  # requests that wait for the old model; more are told to come again
FINISH_SECONDS = 5  # that requests which are being answered get at the end
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class Endpoints:
    """What is done with each request.

    One at a time is with the old model, whose runtime has its own threads; the event loop waits for nothing.
    """

    def __init__(self, test: ShadowTest) -> None:
        self.test = test
        self.old, self.counting = asyncio.Lock(), asyncio.Lock()
        self.waiting = 0

    async def answer(self, request: "Request") -> "Response":
        from starlette.background import BackgroundTask
        from starlette.requests import ClientDisconnect
        from starlette.responses import JSONResponse, Response

        try:
            require_own_origin(request)
            asked, wrong = asked_for(await body_of(request))
            if asked is None:
                raise Refused(400, wrong)
            event = await self.asked(request, asked)
        except ClientDisconnect:
            return Response(status_code=400, headers=HEADERS)  # nobody reads it
        except Refused as refusal:
            close = {"Connection": "close"} if refusal.status in (408, 413) else {}
            return JSONResponse({"error": refusal.reason}, status_code=refusal.status, headers=HEADERS | close)
        answered = {"id": event.id, **(event.answer or {})}
        return JSONResponse(answered, headers=HEADERS, background=BackgroundTask(self.compare, asked, event))

    async def asked(self, request: "Request", asked: dict[str, Any]) -> Any:
        """The old model's answer, when it is this request's turn.

        Raises:
            Refused: too many wait, or the model cannot answer.
            starlette.requests.ClientDisconnect: the client has gone meanwhile.
        """
        from starlette.concurrency import run_in_threadpool
        from starlette.requests import ClientDisconnect

        if self.waiting >= MOST_WAITING:
            raise Refused(503, f"{MOST_WAITING} requests wait already; ask again later")
        self.waiting += 1
        try:
            async with self.old:
                if await request.is_disconnected():
                    raise ClientDisconnect
                return await run_in_threadpool(self.test.answer, asked)
        except UserError as error:
            raise Refused(400, str(error)) from None
        finally:
            self.waiting -= 1

    async def compare(self, asked: dict[str, Any], event: Any) -> None:
        from starlette.concurrency import run_in_threadpool

        async with self.counting:
            await run_in_threadpool(self.test.compare, asked, event)

    async def show(self, _: "Request") -> "Response":
        from starlette.responses import HTMLResponse

        await self.look()
        return HTMLResponse(page(self.test.state), headers=HEADERS)

    async def state(self, _: "Request") -> "Response":
        from starlette.responses import JSONResponse

        await self.look()
        return JSONResponse(self.test.state.as_dict(), headers=HEADERS)

    async def look(self) -> None:
        from starlette.concurrency import run_in_threadpool

        async with self.counting:
            await run_in_threadpool(self.test.look)


def application(test: ShadowTest) -> "Starlette":
    """The ASGI application. A Host header that names another machine is refused: a name of somebody else's may lead
    here (DNS rebinding)."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import Route

    endpoints = Endpoints(test)
    return Starlette(
        routes=[
            Route("/", endpoints.show, methods=["GET"]),
            Route("/state", endpoints.state, methods=["GET"]),
            Route("/", endpoints.answer, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)],
    )


def asked_for(body: bytes) -> tuple[dict[str, Any] | None, str]:
    """The request in a body, or None and what is wrong with it."""
    if len(body) > LARGEST_BODY:
        return None, f"a request has at most {LARGEST_BODY:,} bytes"
    try:
        entry = json.loads(body, parse_constant=no_number, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        return None, f"not JSON: {error}"
    if not isinstance(entry, dict) or not isinstance(entry.get("input"), str) or not entry["input"]:
        return None, 'give a JSON object with "input", a text'
    asked, wrong = request_of(entry)
    return (None, wrong) if wrong else (asked, "")


def no_number(word: str) -> Any:
    """Refuse NaN and Infinity, which Python reads and JSON does not have.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{word} is no number")


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, each name of it given once.

    Raises:
        ValueError: one is given twice: readers disagree on which counts.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def serve(test: ShadowTest, port: int) -> None:
    """Answer on 127.0.0.1 until SIGINT, SIGTERM or SIGHUP, then wait a little for what the new model still owes.

    Raises:
        UserError: the packages are not installed, or the port is taken.
    """
    needs("starlette")
    needs("uvicorn")
    import uvicorn

    server = uvicorn.Server(configured(test, port))
    with stopped_by_signals(server):
        try:
            server.run()
        except SystemExit:  # uvicorn has said on standard error what the system told it
            raise UserError(f"--serve {port}: the port cannot be opened; give another one") from None
    test.finish()


def configured(test: ShadowTest, port: int) -> Any:
    """uvicorn's settings: the loopback, and no client that can hold the server."""
    import uvicorn

    return uvicorn.Config(
        application(test),
        host=HOST,
        port=port,
        log_level="warning",
        http=LimitedProtocol,
        ws="none",
        lifespan="off",
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=FINISH_SECONDS,
        server_header=False,
        proxy_headers=False,
    )


@contextmanager
def stopped_by_signals(server: Any) -> Iterator[None]:
    """Let signals end the server and nothing else: uvicorn raises those that it took once more when it has shut down,
    which by default would end the process before its summary."""

    def stop(*_: Any) -> None:
        server.should_exit = True

    taken = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    try:
        before = {number: signal.signal(number, stop) for number in taken}
    except ValueError:  # not the main thread, as in a test
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
