"""The shadow server under load: errors, latencies and memory with many clients at once on the loopback.

`python -m benchmarks.shadow_server OLD NEW` starts `hfcompress shadow OLD NEW --serve` on a free port and lets 200
clients ask for 30 seconds, each as soon as it has its answer. A 503 is counted by itself: the server says that more
wait than it lets wait. Memory is what the server's process and that of the new model had at most.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from hfcompress.folders.record import cpu_name

TEXT = "You may not rent, lease, lend or sublicense the software {number} times, nor any part of its documentation. "
REPEATED = 4  # about 100 tokens
LOADED_SECONDS = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        traffic, said = Path(folder) / "traffic.jsonl", Path(folder) / "stderr"
        words = [sys.executable, "-m", "hfcompress", "shadow", arguments.old, arguments.new, str(traffic)]
        with said.open("w") as stderr:
            server = subprocess.Popen([*words, "--serve", str(port)], stderr=stderr, stdout=subprocess.DEVNULL)
        try:
            wait_until_it_answers(f"http://127.0.0.1:{port}/state", server, said)
            before = peak_mb(server.pid)
            found = asyncio.run(load(f"http://127.0.0.1:{port}/", arguments.clients, arguments.seconds))
            after = peak_mb(server.pid)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)
        state = json.loads(said.read_text(encoding="utf-8").partition("{")[2].join(["{", ""]))
        lines = sum(1 for _ in traffic.open("rb"))
    print(f"{cpu_name()}, {os.cpu_count()} virtual cores; {arguments.clients} clients for {arguments.seconds:g} s")
    print(found | {"peak_mb_before": before, "peak_mb_after": after, "lines_of_traffic": lines})
    print({name: state[name] for name in ("answered", "compared", "dropped", "failed", "unwritten")})


def wait_until_it_answers(address: str, server: "subprocess.Popen[bytes]", said: Path) -> None:
    """Return when the server has loaded both models.

    Raises:
        RuntimeError: it has ended, or takes too long.
    """
    end = time.monotonic() + LOADED_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            httpx.get(address, timeout=5).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise RuntimeError(f"the server does not answer: {said.read_text(encoding='utf-8')[-2000:]}")


async def load(address: str, clients: int, seconds: float) -> dict[str, Any]:
    """Ask until the time is over; return counts of answers by status, of broken requests, and latencies in ms."""
    statuses, broken, times = Counter[int](), Counter[str](), list[float]()
    end = time.monotonic() + seconds

    async def client(session: httpx.AsyncClient, number: int) -> None:
        asked = 0
        while time.monotonic() < end:
            text, begun = TEXT.format(number=f"{number} {asked}") * REPEATED, time.perf_counter()
            try:
                response = await session.post(address, json={"input": text, "user": str(number)})
            except httpx.HTTPError as error:
                broken[type(error).__name__] += 1
                continue
            statuses[response.status_code] += 1
            asked += 1
            if response.status_code == 200:
                times.append(1e3 * (time.perf_counter() - begun))

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)  # a connection for each client
    async with httpx.AsyncClient(timeout=120, limits=limits) as session:  # one: making 200 takes seconds
        await asyncio.gather(*(client(session, number) for number in range(clients)))
    p50, p99, most = np.percentile(times, [50, 99, 100]).round(0).tolist() if times else (None, None, None)
    return {"statuses": dict(statuses), "broken": dict(broken), "p50_ms": p50, "p99_ms": p99, "max_ms": most}


def peak_mb(process: int) -> dict[str, float]:
    """The most memory that a process and those that it started have had, in MB (VmHWM)."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8").split()
    found = {}
    for name, number in (("server", str(process)), *((f"child {i}", child) for i, child in enumerate(children))):
        status = Path(f"/proc/{number}/status").read_text(encoding="utf-8")
        found[name] = round(int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6, 1)
    return found


if __name__ == "__main__":
    main()
