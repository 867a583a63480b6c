"""What serving costs: requests of many clients against the bare predictor, in one run, by turns.

    python -m benchmarks.serve --run RUN --data DATA [--clients 64] [--texts 1] [--seconds 20] [--rounds 3] [--json]

DATA holds TASK-dev.csv for the tasks of the run. A server in a process of its own answers --clients connections, each
of which sends its next request when it has its answer, of the tasks in turn, --texts texts in each. In between the
predictor itself predicts the same texts in this process, in blocks of 256, for --alone seconds while the server idles.
Every answer is compared with the predictor's: the same label, and numbers to 1e-4. At the end SIGTERM comes in the
middle of the load: what the server says that it accepted is compared with the answers that clients have.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import mtmeta
from benchmarks.export import read_texts
from mtmeta.core.run.predictor import Predictor, Text

__all__ = ["main"]

BLOCK = 256
TOLERANCE = 1e-4


@dataclass
class Load:
    """What the clients have seen."""

    times: list[float] = field(default_factory=list)
    """Seconds from a request's first byte to the last of its answer."""
    texts: int = 0
    wrong: list[str] = field(default_factory=list)
    worst: float = 0.0
    """The largest difference of a number to the predictor's."""
    unanswered: int = 0
    """Requests whose connection ended before the answer was whole."""


@dataclass(frozen=True)
class Question:
    """A request, ready to be sent, and what is to come back."""

    data: bytes
    texts: int
    wanted: list[dict[str, Any]]


def questions(predictor: Predictor, texts: dict[str, list[Text]], size: int) -> list[Question]:
    """Requests of all texts, `size` in each, the tasks in turn."""
    of_tasks: list[list[Question]] = []
    for name, given in texts.items():
        answers = [answer.json() for answer in predictor.predict(name, given)]
        of_task = []
        for start in range(0, len(given) - size + 1, size):
            body = json.dumps({"texts": given[start : start + size]}).encode()
            head = f"POST /predict/{name} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            data = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
            of_task.append(Question(data, size, answers[start : start + size]))
        of_tasks.append(of_task)
    return [question for each in itertools.zip_longest(*of_tasks) for question in each if question is not None]


async def client(port: int, asked: Iterator[Question], load: Load, until: float) -> None:
    """Ask one question after the other on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while time.perf_counter() < until:
            question, began = next(asked), time.perf_counter()
            load.unanswered += 1
            writer.write(question.data)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            assert length
            body = await reader.readexactly(int(length[1]))
            load.unanswered -= 1
            load.times.append(time.perf_counter() - began)
            load.texts += question.texts
            check(question, head, body, load)
    except (OSError, asyncio.IncompleteReadError):
        return
    finally:
        writer.close()


def check(question: Question, head: bytes, body: bytes, load: Load) -> None:
    """Note what is not as the predictor has it."""
    if not head.startswith(b"HTTP/1.1 200"):
        load.wrong.append(body.decode()[:200])
        return
    for found, wanted in zip(json.loads(body)["predictions"], question.wanted, strict=True):
        pairs = [(found.get("score"), wanted.get("score"))]
        pairs += [(found["probabilities"][key], value) for key, value in wanted.get("probabilities", {}).items()]
        worst = max(abs(a - b) for a, b in pairs if a is not None and b is not None)
        load.worst = max(load.worst, worst)
        if found.get("label") != wanted.get("label") or worst > TOLERANCE:
            load.wrong.append(f"{found} is not {wanted}")


async def under_load(port: int, asked: Sequence[Question], clients: int, seconds: float, load: Load) -> float:
    """Send requests for some seconds; return how long it took until the last answer."""
    turns, began = itertools.cycle(asked), time.perf_counter()
    await asyncio.gather(*(client(port, turns, load, began + seconds) for _ in range(clients)))
    return time.perf_counter() - began


def bare(predictor: Predictor, texts: dict[str, list[Text]], seconds: float) -> tuple[int, float]:
    """Texts that the predictor predicts by itself, and the seconds that it took."""
    blocks = [(name, given[i : i + BLOCK]) for name, given in texts.items() for i in range(0, len(given), BLOCK)]
    began, done = time.perf_counter(), 0
    for name, block in itertools.cycle(blocks):
        predictor.block(name, block)
        done += len(block)
        if time.perf_counter() - began > seconds:
            break
    return done, time.perf_counter() - began


async def memory(port: int) -> int:
    """The server's memory, in bytes, by its own /metrics."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    found = re.search(rb"^process_resident_memory_bytes (\d+)", await reader.read(), re.MULTILINE)
    writer.close()
    assert found
    return int(found[1])


def percentile(times: Sequence[float], share: float) -> float:
    """Milliseconds that a share of the requests took at the most."""
    return sorted(times)[min(len(times) - 1, math.ceil(share * len(times)) - 1)] * 1000


def stop(process: subprocess.Popen[str], port: int, asked: Sequence[Question], clients: int) -> dict[str, Any]:
    """Ask the server to stop in the middle of a load; count what was accepted and answered."""
    load = Load()

    async def ended() -> None:
        asking = asyncio.create_task(under_load(port, asked, clients, 60.0, load))
        await asyncio.sleep(2.0)
        process.send_signal(signal.SIGTERM)
        await asking

    asyncio.run(ended())
    code = process.wait(timeout=60)
    assert process.stderr is not None
    said = process.stderr.read()
    counts = re.search(r"stopped: (\d+) requests accepted, (\d+) answered", said)
    assert counts, said
    return {"exit": code, "answers_here": len(load.times), "said": said.splitlines(), "wrong": len(load.wrong)}


def measure(options: Any) -> dict[str, Any]:
    """Run everything; return the figures."""
    predictor = mtmeta.load(options.run, device="cpu")
    texts = {
        name: read_texts(Path(options.data) / f"{name}-dev.csv", predictor.task(name).columns, options.count)
        for name in predictor.tasks
    }
    asked = questions(predictor, texts, options.texts)
    command = [sys.executable, "-m", "mtmeta", "serve", str(options.run), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        found = re.search(r":(\d+) ", process.stderr.readline())
        assert found
        port, load, rounds = int(found[1]), Load(), []
        asyncio.run(under_load(port, asked, options.clients, 3.0, Load()))  # to warm up
        sizes = [asyncio.run(memory(port))]
        for _ in range(options.rounds):
            alone, alone_seconds = bare(predictor, texts, options.alone)
            before = load.texts
            took = asyncio.run(under_load(port, asked, options.clients, options.seconds, load))
            rounds.append({"bare": alone / alone_seconds, "served": (load.texts - before) / took})
            sizes.append(asyncio.run(memory(port)))
        before_stop = asyncio.run(total(port))
        ended = stop(process, port, asked, options.clients)
    finally:
        process.kill()
    accepted = int(ended["said"][-1].split()[1])
    return {
        "clients": options.clients,
        "texts_a_request": options.texts,
        "rounds": rounds,
        "ratio": median(one["served"] / one["bare"] for one in rounds),
        "requests": len(load.times),
        "requests_a_second": len(load.times) / (options.seconds * options.rounds),
        "p50_ms": percentile(load.times, 0.5),
        "p99_ms": percentile(load.times, 0.99),
        "wrong": len(load.wrong),
        "first_wrong": load.wrong[:1],
        "largest_difference": load.worst,
        "unanswered": load.unanswered,
        "memory_mb": [round(size / 1e6, 1) for size in sizes],
        "stop": ended | {"accepted": accepted - before_stop},
    }


async def total(port: int) -> int:
    """Requests that the server has answered so far."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    text = await reader.read()
    writer.close()
    return sum(int(count) for count in re.findall(rb"^mtmeta_requests_total\{.*\} (\d+)", text, re.MULTILINE))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = ArgumentParser(prog="python -m benchmarks.serve")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=os.environ.get("MTMETA_DATA"), help="folder of TASK-dev.csv")
    parser.add_argument("--count", type=int, default=256, help="rows of each file")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--texts", type=int, default=1, help="texts of each request")
    parser.add_argument("--seconds", type=float, default=20.0, help="of load in each round")
    parser.add_argument("--alone", type=float, default=20.0, help="seconds of the bare predictor in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    figures = measure(parser.parse_args(arguments))
    if "--json" in (arguments or sys.argv):
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name}: {np.round(value, 4) if isinstance(value, float) else value}")


if __name__ == "__main__":
    main()
