"""Limits on what a client of the shadow server may send and how long it may take: size, time, connections, origin."""

import asyncio
from typing import Any

from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

LARGEST_BODY = 1_000_000  # bytes
HEADER_SECONDS = 10.0  # from the first byte of a request, or of a connection, to the end of its header
BODY_SECONDS = 30.0  # from the end of the header to the end of the body
IDLE_SECONDS = 10  # of a connection between two requests
MOST_CONNECTIONS = 512


class Refused(Exception):
    """A request that is not answered: the status, and what was wrong."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class LimitedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which itself waits for the end of a header without limit."""

    waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
        else:
            self.wait_for_header()

    def data_received(self, data: bytes) -> None:
        if self.waiting is None and self.between_requests():
            self.wait_for_header()
        super().data_received(data)
        if not self.between_requests():
            self.stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_waiting()
        super().connection_lost(exc)

    def between_requests(self) -> bool:
        """Return whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def wait_for_header(self) -> None:
        self.waiting = self.loop.call_later(HEADER_SECONDS, self.give_up)

    def stop_waiting(self) -> None:
        if self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None

    def give_up(self) -> None:
        """Close a connection whose header did not end in time."""
        self.waiting = None
        if self.between_requests() and not self.transport.is_closing():
            self.transport.abort()


async def body_of(request: Request) -> bytes:
    """Return the body of a request; counted while it comes, so that a larger one is never in memory.

    Raises:
        Refused: it is larger than LARGEST_BODY, or does not end in time.
        starlette.requests.ClientDisconnect: the client has gone.
    """
    too_large = Refused(413, f"a request has at most {LARGEST_BODY:,} bytes")
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or len(announced) > 15 or int(announced) > LARGEST_BODY:
        raise too_large
    parts: list[bytes] = []
    count = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                count += len(part)
                if count > LARGEST_BODY:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise Refused(408, f"the body of a request must arrive within {BODY_SECONDS:g} seconds") from None
    return b"".join(parts)


def require_own_origin(request: Request) -> None:
    """Refuse what a page of another site makes a browser send: it may neither write here nor pose as JSON.

    Raises:
        Refused: the origin is another, or the body is declared as something else than JSON.
    """
    origin = request.headers.get("origin")
    if origin is not None and origin != f"http://{request.headers.get('host', '')}":
        raise Refused(403, "requests of a page of another origin are not answered")
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Refused(403, "requests of a page of another site are not answered")
    kind = request.headers.get("content-type")
    if kind is not None and kind.partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "send JSON, with Content-Type: application/json")
