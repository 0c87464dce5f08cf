"""The verbs, on a real collection and its real search; and a process of its own that is told to stop."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from clipette import serving
from clipette.cli.app import main
from clipette.errors import ConfigError, StoreError, UnsupportedError
from clipette.index.collection import Collection
from clipette.index.opening import open_index
from clipette.index.search import Searcher
from clipette.serve.adapters import IndexSearch
from clipette.serve.schemas import SearchRequest
from clipette.serve.settings import ServeSettings

from .small import COLOURS, WRITE_KEY, Colours, live, picture


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPETTE_CACHE", str(tmp_path / "cache"))
    for name in ("CLIPETTE_MODEL", "CLIPETTE_READ_KEY", "CLIPETTE_WRITE_KEY"):
        monkeypatch.delenv(name, raising=False)


def write_photos(folder: Path) -> Path:
    folder.mkdir()
    for name in COLOURS:
        (folder / f"{name}.png").write_bytes(picture(name))
    (folder / "red twin.png").write_bytes(picture((250, 4, 4)))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


@pytest.fixture
def collection(tmp_path: Path, photos: Path) -> Iterator[Collection]:
    with serving.up_to_date(tmp_path / "my.index", str(photos), Colours()) as built:
        yield built


@pytest.fixture
def client(tmp_path: Path, collection: Collection) -> Iterator[TestClient]:
    app = serving.application(collection, tmp_path / "my.index", Colours(), ServeSettings(write_keys=(WRITE_KEY,)))
    with TestClient(app, base_url="http://localhost") as opened:
        yield opened


def search(client: TestClient, **asked: Any) -> dict[str, Any]:
    response = client.post("/v1/search", json=asked)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def keys(found: dict[str, Any]) -> list[str]:
    return [hit["key"] for hit in found["hits"]]


# ---------------------------------------------------------------- the real search behind the API


def test_every_kind_of_query(client: TestClient) -> None:
    assert keys(search(client, text="red"))[:2] == ["red", "red twin"]
    unwanted = keys(search(client, text="yellow -red", weights={"negative": 3}))
    assert unwanted.index("yellow") < unwanted.index("red")
    assert keys(search(client, text="yellow", negatives=["red"], weights={"negative": 3})) == unwanted
    # More like this: not this itself.
    assert keys(search(client, image_key="red"))[0] == "red twin"
    assert "red" not in keys(search(client, image_key="red"))
    mixed = search(client, image=base64.b64encode(picture("red")).decode(), text="blue", weights={"text": 0})
    assert keys(mixed)[0] == "red"
    assert keys(search(client, liked=["blue"]))[0] == "blue"
    assert "red" not in keys(search(client, text="red", disliked=["red"]))
    grouped = search(client, text="red", group=True)["hits"]
    assert (grouped[0]["key"], grouped[0]["duplicates"]) == ("red", ["red twin"])
    assert keys(search(client, text="red", mmr=0.2))[1] != "red twin"


def test_what_the_index_knows_is_told(client: TestClient) -> None:
    index = client.get("/v1/info").json()["index"]
    assert (index["name"], index["items"], index["model"]) == ("my.index", 6, "colours")
    assert index["calibrated"] is True
    assert set(index["recall"]) == {"all", "10%", "1%"}
    assert index["mixed_space"] is False
    found = search(client, text="red")
    assert found["calibrated"] == (found["hits"][0]["confidence"] is not None)


def test_a_threshold_marks_and_never_hides(client: TestClient) -> None:
    found = search(client, text="red", threshold=0.9)
    assert found["threshold"] == pytest.approx(0.9)
    assert [hit["fits"] for hit in found["hits"]][:3] == [True, True, False]
    assert found["below_threshold"] is False
    nothing = search(client, text="red", threshold=1.0)
    assert len(nothing["hits"]) == 6
    assert search(client, text="red", threshold=None)["threshold"] is None


@pytest.mark.parametrize("body", [{"text": "-red"}, {"text": "   "}, {"text": "red", "weights": {"text": 0}}])
def test_queries_that_ask_for_nothing_are_the_clients_fault(client: TestClient, body: dict[str, Any]) -> None:
    assert client.post("/v1/search", json=body).status_code in (400, 422)


def test_texts_that_will_be_encoded_are_known_beforehand(collection: Collection) -> None:
    encoder = Colours()
    adapter = IndexSearch(Searcher(collection, encoder), two_stages_from=1)
    asked = SearchRequest.model_validate({"text": 'a red "big car" -blue', "negatives": ["green"], "image": "AAAA"})
    texts = adapter.texts(asked)
    encoder.calls.clear()
    wanted: list[str] = []
    original = encoder.encode_texts

    def recorded(given: Any, **options: Any) -> Any:
        wanted.extend(given)
        return original(given, **options)

    encoder.encode_texts = recorded  # type: ignore[method-assign]
    adapter.search(asked, picture("red"))
    assert sorted(texts) == sorted(wanted)
    assert len(texts) == 3


def test_two_stages_where_re_ranking_is_worth_it(tmp_path: Path, collection: Collection) -> None:
    searcher = Searcher(collection, Colours())
    small, large = IndexSearch(searcher), IndexSearch(searcher, two_stages_from=3)
    grouped, plain = SearchRequest(text="red", group=True), SearchRequest(text="red")
    assert not small.expensive(grouped)
    assert large.expensive(grouped)
    assert not large.expensive(plain)
    first, refined = large.search(grouped, None, quick=True), large.search(grouped, None)
    assert [hit.key for hit in first.hits][:2] == ["red", "red twin"]
    assert refined.hits[0].duplicates == ("red twin",)


def test_added_items_are_found_and_their_pictures_are_kept_by_the_index(client: TestClient, collection: Any) -> None:
    new = {"items": [{"key": "up/loaded", "image": base64.b64encode(picture((255, 0, 255))).decode()}]}
    added = client.post("/v1/items", json=new, headers={"Authorization": f"Bearer {WRITE_KEY}"})
    assert added.status_code == 200, added.text
    assert client.get("/v1/items/up%2Floaded/image").content == picture((255, 0, 255))
    image = base64.b64encode(picture((255, 0, 255))).decode()
    assert keys(search(client, image=image))[0] == "up/loaded"
    assert collection.verify(recall=False)["sound"]


# ---------------------------------------------------------------- up


def test_up_adds_what_is_new_and_removes_what_is_gone(tmp_path: Path, photos: Path) -> None:
    folder, encoder = tmp_path / "my.index", Colours()
    with serving.up_to_date(folder, str(photos), encoder) as built:
        assert len(built) == 6
        generation = built.generation
    encoder.calls.clear()
    with serving.up_to_date(folder, str(photos), encoder) as again:
        assert again.generation == generation
        assert encoder.calls == []
    (photos / "new.png").write_bytes(picture((9, 99, 9)))
    (photos / "broken.png").write_bytes(b"no picture")
    (photos / "two\nlines.png").write_bytes(picture("red"))
    (photos / "blue.png").write_bytes(picture("white"))
    (photos / "green.png").unlink()
    with serving.up_to_date(folder, str(photos), encoder) as changed:
        assert sorted(changed.keys()) == ["blue", "new", "red", "red twin", "white", "yellow"]
        assert changed.image_bytes("blue") == picture("white")
        failures = {Path(each["key"]).name: each["reason"] for each in changed.facts["failures"]}
        assert set(failures) == {"broken", "two\nlines"}
        assert "printable text; rename it" in failures["two\nlines"]
    assert sum(encoder.calls) == 3  # the broken one was tried


def test_up_needs_a_model_that_sees(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(UnsupportedError, match="encodes no images"):
        serving.up_to_date(tmp_path / "my.index", str(photos), Colours(can_encode_images=False))


def test_which_model_is_meant_where_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--model"):
        serving.default_model()
    (tmp_path / "runs/demo/student").mkdir(parents=True)
    assert serving.default_model() == "runs/demo/student"
    (tmp_path / "student.bundle").mkdir()
    assert serving.default_model() == "student.bundle"
    monkeypatch.setenv("CLIPETTE_MODEL", "mine.bundle")
    assert serving.default_model() == "mine.bundle"


def test_one_index_per_data_and_space(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ours = serving.default_index("photos", Colours())
    assert ours == serving.default_index(str(photos), Colours(name="another name"))
    assert ours != serving.default_index(str(photos), Colours(space="another space"))
    assert ours != serving.default_index(str(tmp_path), Colours())
    assert ours.is_relative_to(tmp_path / "cache")


# ---------------------------------------------------------------- what can be wrong at the start


def test_a_taken_port_is_said_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "load_encoder", lambda *_: pytest.fail("loaded"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}"):
            serving.serve(tmp_path / "my.index", model="m", port=port)
    with pytest.raises(ConfigError, match="203"):
        serving.serve(tmp_path / "my.index", model="m", host="203.0.113.1", without_read_key=True, port=0)


def test_another_space_and_a_missing_index_are_refused(
    tmp_path: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "load_encoder", lambda *_: Colours(space="another"))
    collection.close()
    with pytest.raises(StoreError, match="cannot be compared"):
        serving.serve(tmp_path / "my.index", model="m", port=0)
    with pytest.raises(StoreError, match="no index here"):
        serving.serve(tmp_path / "absent.index", model="m", port=0)
    # Nothing was left locked.
    open_index(tmp_path / "my.index", write=True).close()


def test_a_second_writer_is_refused_in_words(
    tmp_path: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "load_encoder", lambda *_: Colours())
    monkeypatch.setenv("CLIPETTE_WRITE_KEY", WRITE_KEY)
    with pytest.raises(StoreError, match="writ"):
        serving.serve(tmp_path / "my.index", model="m", port=0)


def test_the_command_line_passes_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    for verb in ("serve", "up"):
        monkeypatch.setattr(serving, verb, lambda *given, _verb=verb, **named: calls.append((_verb, given, named)))
    line = (
        "serve my.index --model m --host 0.0.0.0 --port 9 --read-keys r --write-keys w --no-read-key --allow-host a "
        "--allow-host b --clicks c --threads 3 --set timeout=4 --set max_k=5 --open"
    )
    assert main(line.split()) == 0
    assert main(["up", "photos", "--index", "i", "--port", "0", "--no-open", "--set", "timeout=1"]) == 0
    assert calls[0] == (
        "serve",
        (Path("my.index"),),
        {
            "model": "m",
            "host": "0.0.0.0",
            "port": 9,
            "read_keys": Path("r"),
            "write_keys": Path("w"),
            "without_read_key": True,
            "allowed_hosts": ["a", "b"],
            "clicks": Path("c"),
            "threads": 3,
            "overrides": ["timeout=4", "max_k=5"],
            "open_page": True,
        },
    )
    verb, given, named = calls[1]
    assert (verb, given) == ("up", ("photos",))
    assert (named["model"], named["index"], named["open_page"], named["port"]) == (None, Path("i"), False, 0)


def test_a_wrong_setting_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "my.index", "--model", "m", "--set", "tiemout=4"]) == 2
    assert "did you mean 'timeout'" in capsys.readouterr().err
    assert main(["serve", "my.index", "--model", "m", "--host", "0.0.0.0"]) == 2
    assert "--no-read-key" in capsys.readouterr().err


# ---------------------------------------------------------------- a process that is told to stop

PROGRAM = f"""
import sys
from pathlib import Path
from clipette import serving
from clipette.serve.running import bind
from clipette.serve.settings import ServeSettings
from tests.serve.small import Colours

folder, photos, clicks = map(Path, sys.argv[1:])
encoder = Colours(seconds=0.1)
serving.up_to_date(folder, str(photos), encoder).close()
settings = ServeSettings(port=0, write_keys=({WRITE_KEY!r},), clicks=clicks)
serving.serve_opened(folder, encoder, settings, bind(settings), lambda url: print(url, flush=True))
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_process_and_loses_no_write(
    tmp_path: Path, photos: Path, project: Path, how: signal.Signals
) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{project / 'src'}:{project}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "my.index"), str(photos), str(tmp_path / "clicks.jsonl")]
    process = subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")

        def add(n: int) -> bool:
            item = {"items": [{"key": f"new {n}", "image": base64.b64encode(picture((n, 0, n))).decode()}]}
            try:
                headers = {"Authorization": f"Bearer {WRITE_KEY}"}
                return httpx.post(f"{url}v1/items", json=item, headers=headers, timeout=60).status_code == 200
            except httpx.TransportError:
                return False

        with ThreadPoolExecutor(6) as pool:
            futures = [pool.submit(add, n) for n in range(6)]
            end = time.monotonic() + 60
            while not any(future.done() for future in futures):
                assert time.monotonic() < end
                time.sleep(0.02)
            process.send_signal(how)
            acknowledged = [n for n, future in enumerate(futures) if future.result()]
        code = process.wait(60)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    assert acknowledged
    # 0: whoever started the tests ignores the signal (a shell's background job does SIGINT), and children inherit that.
    assert code in (0, -how)
    with open_index(tmp_path / "my.index", write=True) as after:
        assert {n for n in range(6) if f"new {n}" in after} >= set(acknowledged)
        assert after.verify(recall=False)["sound"]
    assert json.loads((tmp_path / "my.index" / "index.json").read_text())["ready"]


def test_a_browser_in_the_terminal_does_not_hold_the_server_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened, closed = threading.Event(), threading.Event()
    monkeypatch.setattr(serving.webbrowser, "open", lambda url: opened.set() or closed.wait(30))
    begun = time.monotonic()
    serving.announce(True)("http://127.0.0.1:1/")
    assert time.monotonic() - begun < 20
    assert opened.wait(10)
    closed.set()
    assert "open http://127.0.0.1:1/" in capsys.readouterr().err


def test_a_kept_connection_does_not_wait_for_acknowledgements(tmp_path: Path) -> None:
    """Without TCP_NODELAY the second request on a connection takes 40 ms: the time of a delayed acknowledgement."""
    with live(tmp_path) as running, httpx.Client(base_url=running.url) as client:
        seconds = []
        for number in range(12):
            begun = time.perf_counter()
            assert client.post("/v1/search", json={"text": f"red {number}", "k": 1}).status_code == 200
            seconds.append(time.perf_counter() - begun)
    assert min(seconds[2:]) < 0.03
