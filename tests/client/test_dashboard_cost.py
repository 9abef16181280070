"""What the dashboard costs the notebook's kernel: less than 2 % of a core, at a look a second."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.live import Embedded, open_notebook

pytest.importorskip("anywidget")

SESSIONS = 8
SECONDS = 60

MEASURE = """
import time, psutil
heard = []
board.observe(heard.append, "at")
board._handle_custom_msg({"kind": "beat"}, [])
time.sleep(3)
beat = time.monotonic()
heard.clear()
gateway = psutil.Process(PID)
kernel, head, began = time.process_time(), sum(gateway.cpu_times()[:2]), time.monotonic()
while time.monotonic() - began < SECONDS:
    time.sleep(10)
    board._handle_custom_msg({"kind": "beat"}, [])  # as the page does
took = time.monotonic() - began
kernel, head = time.process_time() - kernel, sum(gateway.cpu_times()[:2]) - head
print(f"{100 * kernel / took:.2f} % kernel, {100 * head / took:.2f} % gateway, {len(heard)} looks")
print("RESULT", kernel / took, len(heard) / took)
"""


@pytest.mark.slow
@pytest.mark.cluster
def test_less_than_two_hundredths_of_a_core(own_cluster: Callable[..., Embedded]) -> None:
    cluster = own_cluster()
    client = cluster.connect()
    for number in range(SESSIONS):
        session = client.session(f"s{number}", namespace={})
        if number < 2:
            session.run("x = 1", quiet=True)
    with cluster.http() as http:
        pid = http.get("/healthz").json()["pid"]
    with open_notebook(cluster) as notebook:
        notebook.ok("import mlcloud\nmlcloud.connect()\nboard = mlcloud.show()\nboard")
        shown = notebook.ok(f"PID, SECONDS = {pid}, {SECONDS}\n{MEASURE}").stream()
    print(shown)
    share, looks = map(float, shown.split("RESULT")[1].split())
    assert looks > 0.9
    assert share < 0.02
