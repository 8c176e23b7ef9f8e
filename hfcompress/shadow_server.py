"""shadow --serve: the shadow test over HTTP on this machine's loopback, by Starlette and uvicorn.

POST / with {"input": ..., "user": ..., "group": ...} gives the old model's label and score; GET / is the running page,
GET /state the same as JSON. The new model is asked after the answer has left.
"""

import asyncio
import json
import signal
from typing import TYPE_CHECKING, Any

from hfcompress.errors import UserError
from hfcompress.serving import ShadowTest, page, request_of

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
LARGEST_BODY = 1_000_000  # bytes


def application(test: ShadowTest) -> "Starlette":
    """The ASGI application.

    One request at a time is with the old model, whose runtime has its own threads; the event loop waits for nothing.
    """
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route

    old, counting = asyncio.Lock(), asyncio.Lock()

    async def compare(asked: dict[str, Any], event: Any) -> None:
        async with counting:
            await run_in_threadpool(test.compare, asked, event)

    async def answer(request: "Request") -> "Response":
        asked, wrong = asked_for(await request.body())
        if asked is None:
            return JSONResponse({"error": wrong}, status_code=400)
        try:
            async with old:
                event = await run_in_threadpool(test.answer, asked)
        except UserError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        return JSONResponse(
            {"id": event.id, **(event.answer or {})}, background=BackgroundTask(compare, asked, event)
        )

    async def show(_: "Request") -> "Response":
        async with counting:
            await run_in_threadpool(test.look)
        return HTMLResponse(page(test.state))

    async def state(_: "Request") -> "Response":
        async with counting:
            await run_in_threadpool(test.look)
        return JSONResponse(test.state.as_dict())

    return Starlette(
        routes=[
            Route("/", show, methods=["GET"]),
            Route("/state", state, methods=["GET"]),
            Route("/", answer, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
    )


def asked_for(body: bytes) -> tuple[dict[str, Any] | None, str]:
    """The request in a body, or None and what is wrong with it."""
    if len(body) > LARGEST_BODY:
        return None, f"a request has at most {LARGEST_BODY:,} bytes"
    try:
        entry = json.loads(body)
    except (ValueError, RecursionError) as error:
        return None, f"not JSON: {error}"
    if not isinstance(entry, dict) or not isinstance(entry.get("input"), str) or not entry["input"]:
        return None, 'give a JSON object with "input", a text'
    return request_of(entry), ""


def serve(test: ShadowTest, port: int) -> None:
    """Answer on 127.0.0.1 until SIGINT or SIGTERM, then wait a little for what the new model still owes.

    Raises:
        UserError: the packages are not installed, or the port is taken.
    """
    try:
        import uvicorn
    except ImportError:
        raise UserError("--serve needs uvicorn and starlette: pip install 'hfcompress[serve]'") from None
    server = uvicorn.Server(uvicorn.Config(application(test), host=HOST, port=port, log_level="warning"))
    try:
        server.run()
    except SystemExit:  # uvicorn has said on standard error what the system told it
        raise UserError(f"--serve {port}: the port cannot be opened; give another one") from None
    except KeyboardInterrupt:  # uvicorn has shut down, and raises the signal once more
        signal.signal(signal.SIGINT, signal.default_int_handler)
    test.finish()
