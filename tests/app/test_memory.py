"""Two hundred requests leave memory where it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

REQUESTS, WARM_UP = 200, 40
VISITORS = 10
GROWTH = 16 * 2**20  # bytes: 80 KB a request; noise is a few MB


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays(folders, tmp_path):
    """Of visitors who come again and again; what a new one takes is bounded by the number of sessions that are kept."""
    program = (
        "import sys\nfrom ddpm_hf.app.server import Demo\n"
        f"with Demo([{folders['kinds']!r}, {folders['plain']!r}], concurrency=2) as demo:\n"
        "    print(demo.url, flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        url = process.stdout.readline().strip()
        held = []
        with httpx.Client(base_url=url, timeout=120) as http:
            for i in range(WARM_UP + REQUESTS):
                model, label = (("kinds", "each"), ("plain", None))[i % 2]
                data = [12, i, model, label, "ddim", 2, 2, 0, None]
                joined = {"data": data, "session_hash": f"visitor{i % VISITORS}", "fn_index": number_of(http)}
                http.post("/gradio_api/queue/join", json=joined).raise_for_status()
                with http.stream(
                    "GET", "/gradio_api/queue/data", params={"session_hash": f"visitor{i % VISITORS}"}
                ) as stream:
                    last = [line for line in stream.iter_lines() if "process_completed" in line]
                assert json.loads(last[-1].removeprefix("data: "))["success"], last[-1][:300]
                held.append(resident(process.pid))
    finally:
        process.stdin.close()
        process.wait(60)
    before, after = min(held[WARM_UP - 10 : WARM_UP]), min(held[-10:])
    print(f"{before / 2**20:.0f} MB after {WARM_UP} requests, {after / 2**20:.0f} MB after {REQUESTS} more")
    assert after - before < GROWTH


def number_of(http: httpx.Client, known: list[int] = []) -> int:  # noqa: B006  asked once
    if not known:
        known += [d["id"] for d in http.get("/config").json()["dependencies"] if d["api_name"] == "draw"]
    return known[0]
