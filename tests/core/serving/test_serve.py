"""`mtmeta serve`: answers, refusals, counts, the page in a real browser, and the end by SIGTERM."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from tests.support.commands import assert_refused, call
from tests.support.quick import quick

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
JSON = {"Content-Type": "application/json"}
PAIR = {"task": "pair_classification", "label": "is_duplicate", "labels": ["0", "1 <b>"], "batch_size": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    recipe = json.loads(quick(folder, training={"steps": 1, "precision": "fp32"}).read_text())
    rows = "".join(f"{i}\tword {i}\tword {i + i % 2}\t{'0' if i % 2 else '1 <b>'}\n" for i in range(12))
    (folder / "pairs.tsv").write_text("id\tsentence1\tsentence2\tis_duplicate\n" + rows)
    recipe["tasks"]["pairs"] = {**PAIR, "train": "pairs.tsv", "dev": "pairs.tsv"}
    (folder / "r.yaml").write_text(json.dumps(recipe))
    mtmeta.run(folder / "r.yaml", out=folder / "run", device="cpu")
    return folder / "run"


class Served:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stderr is not None
        self.first = process.stderr.readline()
        found = re.search(r"http://([\d.]+):(\d+)", self.first)
        assert found, self.first + process.stderr.read()
        self.host, self.port = found[1], int(found[2])

    def ask(self, path: str, body: Any = None, method: str = "", headers: Any = JSON) -> tuple[int, Any]:
        """The status and the answer, as data where it is JSON."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        data = body if body is None or isinstance(body, bytes | str | Parts) else json.dumps(body)
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, data, headers if data else {})
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        return response.status, json.loads(text) if "json" in response.headers["Content-Type"] else text


@contextmanager
def serving(run: Path, *options: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "mtmeta", "serve", str(run), "--port", "0", "--device", "cpu", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield Served(process)
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Served]:
    with serving(run, "--max-body", "2000", "--max-texts", "5") as served:
        yield served


def test_answers_are_those_of_predict(run: Path, server: Served) -> None:
    predictor = mtmeta.load(run, device="cpu")
    cases: dict[str, list[Any]] = {"kind": ["word 3", "good"], "grade": ["word 3"], "pairs": [("word", "word 1")]}
    for name, texts in cases.items():
        status, answer = server.ask(f"/predict/{name}", {"texts": texts})
        assert status == 200 and answer["task"] == name
        for found, wanted in zip(answer["predictions"], predictor.predict(name, texts), strict=True):
            expected = wanted.json()
            assert found.keys() == expected.keys() and found.get("label") == expected.get("label")
            assert found["score"] == pytest.approx(expected["score"], abs=1e-5)
    one = server.ask("/predict/kind", {"text": "word 3"})[1]["predictions"]
    assert [found["label"] for found in one] == [predictor.predict("kind", "word 3").label]


def test_many_at_a_time_have_their_own_answers(run: Path, server: Served) -> None:
    texts = [f"word {number} {'good ' * (number % 7)}" for number in range(48)]
    wanted = [found.json() for found in mtmeta.load(run, device="cpu").predict("kind", texts)]
    found: dict[int, Any] = {}

    def client(part: int) -> None:
        for number in range(part, len(texts), 12):
            found[number] = server.ask("/predict/kind", {"text": texts[number]})[1]["predictions"][0]

    threads = [threading.Thread(target=client, args=(part,)) for part in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, own in enumerate(wanted):
        assert found[number]["probabilities"] == pytest.approx(own["probabilities"], abs=1e-5)


class Parts:
    """A body that is sent part by part, with a pause after the second: the server has answered by then, if it wants."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[bytes]:
        for number, part in enumerate(self.parts):
            if number == 2:
                time.sleep(0.2)
            yield part


BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "a task that is not there": ({"path": "/predict/knd", "body": {"text": "a"}}, 404, "did you mean 'kind'"),
    "a path that is not there": ({"path": "/docs"}, 404, "see /openapi.json"),
    "a method": ({"path": "/predict/kind", "method": "PUT", "body": {"text": "a"}}, 405, "takes POST"),
    "a kind of content": ({"body": "text=a", "headers": {"Content-Type": "text/plain"}}, 415, "application/json"),
    "no JSON": ({"body": "{text: a}"}, 400, "no JSON"),
    "no UTF-8": ({"body": b'{"text": "\xff"}'}, 400, "UTF-8"),
    "nested too deep": ({"body": "[" * 1900}, 400, "no JSON"),
    "no object": ({"body": ["a"]}, 422, "a list, expected an object"),
    "nothing": ({"body": {}}, 422, "no text"),
    "an unknown key": ({"body": {"text": "a", "task": "kind"}}, 422, "unknown key 'task'"),
    "both": ({"body": {"text": "a", "texts": ["a"]}}, 422, "not both"),
    "no list": ({"body": {"texts": "a"}}, 422, "texts is a string"),
    "an empty list": ({"body": {"texts": []}}, 422, "texts is empty"),
    "no text": ({"body": {"texts": ["a", 3]}}, 422, "texts[1] is a number"),
    "an empty text": ({"body": {"text": " \n"}}, 422, "text is empty"),
    "half a character": ({"body": '{"text": "\\ud800"}'}, 422, "surrogate"),
    "a pair for one text": ({"body": {"text": ["a", "b"]}}, 422, "takes a text"),
    "one text for a pair": ({"path": "/predict/pairs", "body": {"text": "a"}}, 422, "takes a list of two texts"),
    "half a pair": ({"path": "/predict/pairs", "body": {"texts": [["a"]]}}, 422, "texts[0] is a list of 1"),
    "too many texts": ({"body": {"texts": ["a"] * 6}}, 413, "at most 5"),
    "too long": ({"body": {"text": "a" * 2000}}, 413, "2,000 bytes"),
    "too long, of a length nobody knows": ({"body": Parts(b'{"text": "', b"a" * 3000, b'"}')}, 413, "2,000 bytes"),
    "too long, and still on its way": ({"body": Parts(*[b"a" * 65536] * 40)}, 413, "2,000 bytes"),
    "too long, as it says, and still on its way": (
        {"body": Parts(*[b"a" * 65536] * 40), "headers": {**JSON, "Content-Length": str(65536 * 40)}},
        413,
        "2,000 bytes",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_requests_have_4xx_and_one_line(what: str, server: Served) -> None:
    asked, status, words = BAD[what]
    found, answer = server.ask(asked.pop("path", "/predict/kind"), **asked)
    assert (found, list(answer)) == (status, ["error"])
    assert words in answer["error"] and "\n" not in answer["error"]
    assert server.ask("/predict/kind", {"text": "a"})[0] == 200


def test_health_metrics_and_the_interface(server: Served) -> None:
    assert server.ask("/health") == (200, {"status": "ok", "run": "run", "tasks": ["kind", "grade", "pairs"]})
    before = server.ask("/metrics")[1]
    server.ask("/predict/grade", {"texts": ["a", "b"]})
    server.ask("/predict/grade", {"texts": []})
    after = server.ask("/metrics")[1]

    def value(text: str, line: str) -> float:
        found = re.search(rf"^{re.escape(line)} ([\d.]+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    for line, more in (
        ('mtmeta_texts_total{task="grade"}', 2),
        ('mtmeta_requests_total{task="grade",status="200"}', 1),
        ('mtmeta_requests_total{task="grade",status="422"}', 1),
        ('mtmeta_batch_texts_bucket{task="grade",le="2"}', 1),
        ('mtmeta_request_seconds_count{task="grade"}', 2),
    ):
        assert value(after, line) - value(before, line) == more, line
    assert value(after, "process_resident_memory_bytes") > 1e7
    interface = server.ask("/openapi.json")[1]
    answer = interface["paths"]["/predict/kind"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["properties"]["predictions"]["items"]["properties"]["label"]["enum"] == ["no", "yes"]
    assert interface["paths"]["/predict/pairs"]["post"]["requestBody"]["content"]["application/json"]
    number = interface["paths"]["/predict/grade"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert number["properties"]["predictions"]["items"]["properties"]["score"]["maximum"] == 5


def test_the_page_in_a_browser(run: Path, server: Served) -> None:
    """A person tries every task: the label and its bars, a number, and what is wrong with an empty text."""
    browsers = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if (path := next(filter(None, map(shutil.which, BROWSERS)), None)) is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    predictor = mtmeta.load(run, device="cpu")
    with browsers.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 800})
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("request", lambda request: problems.extend([] if str(server.port) in request.url else [request.url]))
        page.goto(f"http://{server.host}:{server.port}/")
        page.get_by_label("Text for kind").fill("word 3")
        page.get_by_label("Text for kind").press("Control+Enter")
        kind = page.locator("[data-task=kind]")
        kind.locator(".answer").wait_for()
        assert kind.locator(".answer").inner_text().split()[0] == predictor.predict("kind", "word 3").label
        assert kind.locator(".track").count() == 2
        page.get_by_label("First text for pairs").fill("word 1")
        page.get_by_label("Second text for pairs").fill("word 2")
        pairs = page.locator("[data-task=pairs]")
        pairs.get_by_role("button").click()
        pairs.locator(".answer").wait_for()
        (wanted,) = predictor.predict("pairs", [("word 1", "word 2")])
        assert str(wanted.label) in pairs.locator(".answer").inner_text()  # as text: a label may look like markup
        page.get_by_label("Text for grade").fill("word 3")
        page.locator("[data-task=grade]").get_by_role("button").click()
        page.locator("[data-task=grade] .answer").wait_for()
        number = float(page.locator("[data-task=grade] .answer").inner_text().split()[0])
        assert number == pytest.approx(predictor.predict("grade", "word 3").score, abs=5.1e-4)
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        assert not problems
        page.get_by_label("Text for kind").fill(" ")
        kind.get_by_role("button").click()
        kind.locator(".error").wait_for()
        assert kind.locator(".error").inner_text() == "text is empty"
        browser.close()


def test_sigterm_answers_what_was_accepted(run: Path) -> None:
    """Clients ask all the time: every request that the server took up was answered, whole, and the exit code is 0."""
    whole: list[int] = []
    with serving(run) as server:

        def client(number: int) -> None:
            connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
            body = json.dumps({"texts": [f"word {number}"] * 50})
            try:
                while True:
                    connection.request("POST", "/predict/kind", body, JSON)
                    response = connection.getresponse()
                    whole.append(len(json.loads(response.read())["predictions"]))
            except (OSError, http.client.HTTPException):
                return
            finally:
                connection.close()

        threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        while len(whole) < 40:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 0
        for thread in threads:
            thread.join(timeout=60)
        assert server.process.stderr is not None
        said = server.process.stderr.read().splitlines()
    assert set(whole) == {50}
    assert re.fullmatch(r"stopping: \d+ requests under way", said[0])
    assert said[1:] == [f"stopped: {len(whole)} requests accepted, {len(whole)} answered"]


def test_what_cannot_be_served(run: Path, server: Served, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    outcome = call("serve", str(run), "--port", str(server.port), "--device", "cpu", cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 6, f"127.0.0.1:{server.port}", "--port")
    outcome = call("serve", "nowhere", "--port", "0", cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 2, "nowhere")
    monkeypatch.setattr("mtmeta.core.serving.server.PACKAGES", ("fastapi", "nowhere_installed"))
    outcome = call("serve", str(run), cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 6, "nowhere_installed", "pip install 'mtmeta[serve]'")
