"""The demo's server: what its interface gives, and what it refuses, whoever asks."""

import io
import json
import re
import socket
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlparse

import httpx
import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from ddpm_hf.app.request import EACH, Limits
from ddpm_hf.pictures import enlarged
from ddpm_hf.sampling import Sampling, draw_images

GOOD = [4, 7, "kinds", "2", "ddim", 6, 3, 0, None]  # how many, seed, model, class, sampler, steps, guidance, interval


@pytest.fixture(scope="module")
def http(demo):
    with httpx.Client(base_url=demo.url, timeout=60) as client:
        yield client


def ask(http, api, data, session="a"):
    """The last event that a client sees, and its data."""
    event = http.post(f"/gradio_api/call/{api}", json={"data": data})
    if event.status_code != 200:
        return str(event.status_code), event.text
    with http.stream("GET", f"/gradio_api/call/{api}/{event.json()['event_id']}") as stream:
        lines = [line for line in stream.iter_lines() if line]
    return lines[-2].removeprefix("event: "), json.loads(lines[-1].removeprefix("data: "))


def files_in(data):
    """URLs of all files in an answer."""
    if isinstance(data, dict):
        here = [data["url"]] if isinstance(data.get("url"), str) else []
        return here + [url for value in data.values() for url in files_in(value)]
    return [url for value in data for url in files_in(value)] if isinstance(data, list) else []


def fetched(http, url):
    return http.get(urlparse(url).path)


def images_of(http, data):
    return [
        np.asarray(Image.open(io.BytesIO(fetched(http, url).content)))
        for url in files_in(data)
        if re.search(r"\d{6}\.png$", url)
    ]


def expected(models, name, seeds, sampling):
    return enlarged(draw_images(models[name].pipe, seeds, 32, sampling), 256)[:, 0]


def test_pictures_are_those_of_the_seeds(http, models):
    event, data = ask(http, "draw", GOOD)
    assert event == "complete"
    found = images_of(http, data)
    np.testing.assert_array_equal(
        found, expected(models, "kinds", range(7, 11), Sampling("ddim", 6, class_label=2, guidance_scale=3))
    )


def test_the_zip_holds_pictures_in_both_sizes_and_their_settings(http, models):
    _, data = ask(http, "draw", GOOD)
    (url,) = [url for url in files_in(data) if url.endswith(".zip")]
    archive = zipfile.ZipFile(io.BytesIO(fetched(http, url).content))
    settings = json.loads(archive.read("settings.json"))
    assert settings["seeds"] == [7, 8, 9, 10]
    assert settings["settings"] == [
        {
            "model": "kinds",
            "sampler": "ddim",
            "steps": 6,
            "guidance_scale": 3.0,
            "guidance_interval": [0.0, None],
            "classes": ["kind 2"] * 4,
        }
    ]
    sampling = Sampling("ddim", 6, class_label=2, guidance_scale=3)
    true = draw_images(models["kinds"].pipe, range(7, 11), 32, sampling)[:, 0]
    for i, seed in enumerate(settings["seeds"]):
        name = f"{seed:06d}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(archive.open(f"true_size/{name}"))), true[i])
        assert Image.open(archive.open(f"enlarged/{name}")).size == (256, 256)
    assert Image.open(archive.open("grid.png")).size[0] > 16


def test_two_settings_on_the_same_seeds(http, models):
    b = ["plain", None, "heun", 4, 1, 0, None]
    event, data = ask(http, "compare", [2, 5, *GOOD[2:], *b])
    assert event == "complete"
    found = images_of(http, data)
    np.testing.assert_array_equal(
        found[:2], expected(models, "kinds", range(5, 7), Sampling("ddim", 6, class_label=2, guidance_scale=3))
    )
    np.testing.assert_array_equal(found[2:], expected(models, "plain", range(5, 7), Sampling("heun", 4)))


BAD = [
    (0, 10**6, "how many: 1000000 should be a whole number from 1 to 12"),
    (0, "four", 'how many: "four" should be a whole number'),
    (0, None, "how many: null should be"),
    (1, -3, "seed: -3 should be"),
    (2, "/etc/passwd", 'model: "/etc/passwd" is none of kinds, plain'),
    (2, "../plain", "is none of kinds, plain"),
    (2, "<img src=x onerror=alert(1)>", "&lt;img"),
    (3, "9", 'class: "9" is none of'),
    (4, "euler", "sampler:"),
    (5, 31, "steps: 31 should be a whole number from 1 to 30"),
    (6, "3", "guidance:"),
    (7, -1, "lowest noise level"),
    (8, "inf", "highest noise level"),
]


@pytest.mark.parametrize(("place", "value", "message"), BAD, ids=[message for _, _, message in BAD])
def test_a_mistake_gets_a_line_and_nothing_else(demo, http, capfd, place, value, message):
    data = [*GOOD]
    data[place] = value
    event, told = ask(http, "draw", data)
    assert event == "error"
    assert message in told["error"]
    assert "\n" not in told["error"]
    assert "Traceback" not in capfd.readouterr().err


def test_a_python_client_sees_the_same(demo):
    client = Client(demo.url, verbose=False, analytics_enabled=False)
    with pytest.raises(AppError, match="how many: 1000000 should be"):
        client.predict(10**6, *GOOD[1:], api_name="/draw")
    client.close()


@pytest.mark.parametrize(
    "data",
    [
        [],
        GOOD[:3],
        [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, *GOOD[1:]],
        [4, 7, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, *GOOD[3:]],
    ],
    ids=["none", "few", "file", "file for a model"],
)
def test_what_is_no_request_at_all(http, data):
    event, told = ask(http, "draw", data)
    assert event in ("error", "422")
    assert "passwd" not in str(told)
    assert ask(http, "draw", GOOD)[0] == "complete"


@pytest.mark.parametrize(
    "path",
    [
        "file=/etc/passwd",
        "file=../../../../etc/passwd",
        "file=%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "file=/proc/self/environ",
        "file=setup.cfg",
        "file=http://127.0.0.1:1/",
        "file=https://example.org/",
        "file/etc/passwd",
        "proxy=https://example.org/",
        "upload_progress?upload_id=1",
        "run-history/records",
        "runs",
        "stream/a/b/1/playlist.m3u8",
        "vibe-code",
        "deep_link",
    ],
)
def test_no_other_file_and_no_other_site(http, path):
    assert http.get(f"/gradio_api/{path}").status_code in (403, 404)


def test_the_models_own_files_are_not_served(http, folders):
    file = Path(folders["kinds"]) / "model_index.json"
    assert file.is_file()
    assert http.get(f"/gradio_api/file={file}").status_code == 403


def test_pictures_cannot_be_reached_through_a_way_out_of_their_folder(http, demo):
    _, data = ask(http, "draw", GOOD)
    url = files_in(data)[0]
    assert fetched(http, url).status_code == 200
    place = urlparse(url).path.rsplit("/", 1)[0]
    for other in ("..", ".", "", "../../../../../../etc/passwd", "%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd"):
        assert http.get(f"{place}/{other}").status_code in (403, 404)
    assert len(place.rsplit("/", 1)[1]) >= 20  # nobody guesses another's


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/gradio_api/upload"), ("POST", "/gradio_api/process_recording"), ("GET", "/monitoring"),
     ("GET", "/monitoring/summary"), ("POST", "/gradio_api/component_server"), ("POST", "/login"),
     ("POST", "/gradio_api/vibe-edit"), ("GET", "/svelte/x")],
)  # fmt: skip
def test_what_the_page_does_not_need_is_not_there(http, method, path):
    assert http.request(method, path, files={"files": b"x"} if method == "POST" else None).status_code == 404


def test_a_request_of_megabytes_is_not_read(http):
    assert http.post("/gradio_api/call/draw", content=b"x" * 10**6).status_code == 413
    assert http.post("/gradio_api/call/draw", content=iter([b"x"])).status_code == 411


def test_a_body_that_says_two_lengths_is_not_read(demo):
    """Servers take the chunks then, however many."""
    address = urlparse(demo.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as raw:
        raw.sendall(
            b"POST /gradio_api/call/draw HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        assert re.match(rb"HTTP/1.1 4\d\d ", raw.recv(100))


def test_what_looks_like_a_file_is_fetched_from_nowhere(http, demo, monkeypatch):
    """By any of the ways in: with a queue, without, and as what an event is about."""
    from gradio import processing_utils

    fetched = []

    async def trap(url, *_args, **_more):
        fetched.append(url)
        raise OSError("trapped")

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", trap)
    far = {"path": "https://example.org/x.png", "meta": {"_type": "gradio.FileData"}}
    for number in [d["id"] for d in http.get("/config").json()["dependencies"]]:
        for data in ([far], [[far]], [far, *GOOD[1:]]):
            body = {"data": data, "fn_index": number, "session_hash": "far"}
            assert http.post("/gradio_api/run/predict", json=body).status_code == 422
            assert http.post("/gradio_api/queue/join", json=body).status_code == 422
    assert http.post("/gradio_api/call/draw", json={"data": [far, *GOOD[1:]]}).status_code == 422
    assert http.post("/gradio_api/call/v2/draw", json={"count": far}).status_code == 404
    body = {"data": [None], "fn_index": 0, "session_hash": "far", "event_data": {"index": far, "value": far}}
    http.post("/gradio_api/run/predict", json=body)
    assert fetched == []


@pytest.mark.parametrize("name", ["x" * 65, "x y", {"a": 1}, 5.5])
def test_a_session_has_a_short_name(http, name):
    body = {"data": GOOD, "fn_index": 0, "session_hash": name}
    assert http.post("/gradio_api/queue/join", json=body).status_code == 422


def test_answers_forbid_the_browser_to_ask_anyone_else(http):
    for path in ("/", "/config"):
        policy = http.get(path).headers["content-security-policy"]
        assert "img-src 'self' data: blob:;" in policy
        assert "form-action 'none'" in policy


def test_the_gate_stands_below_a_path_too(folders, monkeypatch):
    from ddpm_hf.app.server import Demo

    monkeypatch.setenv("GRADIO_ROOT_PATH", "/below")
    with Demo([folders["plain"]]) as demo, httpx.Client(base_url=demo.url, timeout=60) as http:
        for prefix in ("", "/below"):
            assert http.post(f"{prefix}/gradio_api/upload", files={"files": b"x"}).status_code == 404
            assert http.get(f"{prefix}/gradio_api/proxy=https://example.org/").status_code == 404
            assert http.get(f"{prefix}/monitoring").status_code == 404
            assert http.get(f"{prefix}/config").status_code == 200


def test_one_session_does_not_fill_the_queue(demo, http):
    """Nor one address: half of the places are others'."""
    number = next(d["id"] for d in http.get("/config").json()["dependencies"] if d["api_name"] == "draw")
    slow = [12, 0, "plain", None, "ddpm", 30, 1, 0, None]
    body = {"data": slow, "fn_index": number, "session_hash": "greedy"}
    given = [http.post("/gradio_api/queue/join", json=body).status_code for _ in range(10)]
    assert 503 in given
    assert given.count(200) <= 2 + 4  # drawn at once, and waiting
    while demo.rooms.visits.ahead():  # those that waited too
        demo.rooms.visits.stop("greedy")
        time.sleep(0.05)


def test_the_queue_cannot_be_skipped(http):
    answer = http.post("/gradio_api/run/draw", json={"data": GOOD})
    assert answer.status_code == 404
    assert "join the queue" in answer.text


def test_several_at_once_get_what_each_would_have_got_alone(http, models):
    requests = [[3, seed, "kinds", label, "ddim", 8, 2, 0, None] for seed, label in ((0, "0"), (0, "1"), (9, EACH))]
    requests.append([3, 0, "plain", None, "unipc", 8, 1, 0, None])
    alone = [images_of(http, ask(http, "draw", data)[1]) for data in requests]
    assert not np.array_equal(alone[0], alone[1])
    with ThreadPoolExecutor(len(requests)) as threads:
        for one, several in zip(alone, threads.map(lambda data: ask(http, "draw", data)[1], requests), strict=True):
            np.testing.assert_array_equal(images_of(http, several), one)


def test_a_full_queue_refuses(folders):
    from ddpm_hf.app.server import Demo

    slow = [12, 0, "plain", None, "ddpm", 50, 1, 0, None]
    with (
        Demo([folders["plain"]], limits=Limits(12, 50), queue_size=1) as demo,
        httpx.Client(base_url=demo.url, timeout=60) as http,
        ThreadPoolExecutor(6) as threads,
    ):
        begin = threading.Barrier(6)

        def one(_):
            begin.wait()
            return ask(http, "draw", slow)

        events = [event for event, _ in threads.map(one, range(6))]
    assert "complete" in events
    assert "503" in events
    assert set(events) == {"complete", "503"}


def test_what_nobody_follows_is_not_drawn_to_its_end(demo, http, monkeypatch):
    from ddpm_hf.app import visits

    monkeypatch.setattr(visits, "UNFOLLOWED", 0.5)
    unet, taken = demo.models["plain"].pipe.unet, []
    forward = unet.forward

    def slowly(*args, **kwargs):
        taken.append(None)
        time.sleep(0.1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(unet, "forward", slowly, raising=False)
    slow = [2, 0, "plain", None, "ddpm", 30, 1, 0, None]
    http.post("/gradio_api/call/draw", json={"data": slow}).raise_for_status()
    time.sleep(2.5)
    begun = len(taken)
    assert 0 < begun < 15
    time.sleep(0.5)
    assert len(taken) == begun
    assert ask(http, "draw", slow)[0] == "complete"  # three seconds, followed


def test_a_link_is_read_where_the_page_is_loaded(http):
    """What of it is wrong is told, escaped."""
    load = next(d for d in http.get("/config").json()["dependencies"] if d["targets"][0][1] == "load")
    body = {"data": [], "fn_index": load["id"], "session_hash": "linked"}
    address = "/gradio_api/run/predict?count=3&seed=11&steps=9&model=%3Cscript%3E"
    updates = http.post(address, json=body).json()["data"]
    told = next(u["value"] for u in updates if isinstance(u, dict) and "could be used" in str(u.get("value")))
    assert "&lt;script&gt;" in told
    assert "<script>" not in told
    assert [u["value"] for u in updates if isinstance(u, dict) and u.get("value") in (3, 11, 9)] == [3, 11, 9]


def test_files_go_with_the_demo(folders):
    from ddpm_hf.app.server import Demo

    with Demo([folders["plain"]]) as demo, httpx.Client(base_url=demo.url, timeout=60) as http:
        _, data = ask(http, "draw", [1, 0, "plain", None, "ddim", 2, 1, 0, None])
        file = Path(urlparse(files_in(data)[0]).path.split("file=")[1])
        assert file.is_file()
    assert not file.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 70000}, "--port: 70000 should be from 1 to 65535"),
        ({"host": "192.0.2.1"}, "--host: 192.0.2.1 is no address of this machine"),
        ({"host": "no such host", "port": 8000}, "--host: no such host is no address"),
    ],
)
def test_an_address_that_cannot_be_served_on(folders, options, message):
    from ddpm_hf.app.server import Demo
    from ddpm_hf.errors import UserError

    began = time.monotonic()
    with pytest.raises(UserError, match=message):
        Demo([folders["plain"]], **options)
    assert time.monotonic() - began < 5


def test_a_port_that_is_taken(demo, folders):
    from ddpm_hf.app.server import Demo
    from ddpm_hf.errors import UserError

    with pytest.raises(UserError, match=r"--port: .*in use"):
        Demo([folders["plain"]], port=urlparse(demo.url).port)


def test_a_proxy_for_other_sites_is_not_asked_for_this_page(folders, monkeypatch):
    from ddpm_hf.app.server import Demo

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Demo([folders["plain"]]) as demo, httpx.Client(base_url=demo.url) as http:
        assert http.get("/config").status_code == 200


def test_a_session_takes_no_more_memory_from_drawing_to_drawing(demo, http):
    numbers = {d["api_name"]: d["id"] for d in http.get("/config").json()["dependencies"]}

    def drawn(api, data):
        joined = {"data": data, "session_hash": "again", "fn_index": numbers[api]}
        http.post("/gradio_api/queue/join", json=joined).raise_for_status()
        followed = http.get("/gradio_api/queue/data", params={"session_hash": "again"}).text
        assert '"success":true' in followed.replace(" ", "")
        return len(demo.page.app.state_holder.session_data["again"].blocks_config.blocks)

    for api, data in (("draw", GOOD), ("compare", [2, 5, *GOOD[2:], *GOOD[2:]])):
        assert len({drawn(api, data) for _ in range(3)}) == 1


def pressed(demo, http, name, data, session, **event):
    """What the page's own handler of that name, the Draw tab's where both tabs have one, answers at last."""
    number = next(i for i, f in demo.page.fns.items() if f.name == name)
    joined = {"data": data, "session_hash": session, "fn_index": number, **event}
    http.post("/gradio_api/queue/join", json=joined).raise_for_status()
    lines = http.get("/gradio_api/queue/data", params={"session_hash": session}).text.split("\n")
    return json.loads(next(line for line in lines if '"process_completed"' in line).removeprefix("data: "))


def test_a_strip_is_of_what_the_page_says_is_shown(demo, http):
    """Nothing is remembered of a visitor: what they send is checked again."""
    assert pressed(demo, http, "_prepare", GOOD, "strip")["success"]
    query = "?count=4&seed=7&model=kinds&class=2&sampler=ddim&steps=6&guidance=3"
    answer = pressed(demo, http, "_draw_strip", [query, 1], "strip")
    assert answer["success"]
    assert "Seed 8, from noise" in str(answer["output"])
    for sent in (["", 1], [query, 4], [query.replace("kinds", "none"), 1], [5, 1], [query, "1"]):
        answer = pressed(demo, http, "_draw_strip", sent, "strip")
        assert not answer["success"]
        assert "draw some pictures first" in answer["output"]["error"]


def test_what_a_session_draws_is_not_disturbed(demo, http):
    """Neither by Enter in the seed's box nor by the other tab's Stop."""
    visits = demo.rooms.visits
    with visits.drawing("busy", "draw") as stop:
        visits.stop("busy", "compare")
        assert not stop.is_set()
        answer = pressed(demo, http, "_prepare", GOOD, "busy")
        assert "something is being drawn" in answer["output"]["error"]
        visits.stop("busy", "draw")
        assert stop.is_set()
    assert pressed(demo, http, "_prepare", GOOD, "busy")["success"]
