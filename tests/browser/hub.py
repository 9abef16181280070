"""A real JupyterHub on 127.0.0.1: its proxy, its login page, a server of JupyterLab for its user.

    Chromium ──► configurable-http-proxy ──► /hub/        JupyterHub: login, spawning
                        └──────────────────► /user/ada/   its server: JupyterLab, mlcloud

Everything lies below a base URL of its own, `/science/`, as behind an institute's proxy.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.browser.lab import SETTINGS, free_port, with_extension

VENV = Path(sys.prefix)
START_S = 120.0
USER = "ada"
CONFIG = """
import json
c = get_config()
given = json.load(open({given!r}))
c.JupyterHub.bind_url = f"http://127.0.0.1:{{given['port']}}/science/"
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{{given['hub_port']}}"
c.ConfigurableHTTPProxy.command = given["proxy"]
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{{given['api_port']}}"
c.JupyterHub.db_url = "sqlite:///" + given["folder"] + "/hub.sqlite"
c.JupyterHub.cookie_secret_file = given["folder"] + "/cookie_secret"
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = given["password"]
c.Authenticator.allow_all = True
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = given["folder"] + "/homes/{{username}}"
c.Spawner.cmd = given["server"]
c.Spawner.args = given["options"]
c.Spawner.default_url = "/lab"
c.Spawner.environment = given["environment"]
c.Spawner.start_timeout = 120
c.Spawner.http_timeout = 120
"""


def program(name: str, *, below: str) -> str:
    """Where it is: `make test-slow` installs it, and a user may have it."""
    for folder in (VENV / below, VENV / "bin"):
        if (folder / name).exists():
            return str(folder / name)
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: `make .venv/hub/bin/jupyterhub`")
    return found


def beside(environment: dict[str, str]) -> dict[str, str]:
    """With this Python's JupyterLab and its extensions: the Hub has an environment of its own, in
    which they can be imported, but their files lie here."""
    found = dict(environment)
    for name, folder in (
        ("JUPYTER_PATH", VENV / "share" / "jupyter"),
        ("JUPYTER_CONFIG_PATH", VENV / "etc" / "jupyter"),
    ):
        found[name] = os.pathsep.join(filter(None, [found.get(name, ""), str(folder)]))
    return {**found, "JUPYTERLAB_DIR": str(VENV / "share" / "jupyter" / "lab")}


class Hub:
    """As a `Lab` for `Book`, once somebody is logged in: by the Hub's cookie."""

    tree = "lab/tree"
    token = ""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        hub = program("jupyterhub", below="hub/bin")
        server = str(Path(hub).parent / "jupyterhub-singleuser")
        proxy = program("configurable-http-proxy", below="node/node_modules/.bin")
        self.folder = folder / "homes" / USER
        self.folder.mkdir(parents=True)
        self.password = secrets.token_hex(8)
        port = free_port()
        self.root = f"http://127.0.0.1:{port}/science"
        self.url = f"{self.root}/user/{USER}"
        settings = folder / "app-settings"
        settings.mkdir()
        (settings / "overrides.json").write_text(json.dumps(SETTINGS))
        given = {
            "port": port,
            "hub_port": free_port(),
            "api_port": free_port(),
            "proxy": [proxy],
            "server": [server],
            "options": [
                "--allow-root",
                "--LabApp.expose_app_in_browser=True",
                "--LabApp.extension_manager=readonly",
                f"--LabApp.app_settings_dir={settings}",
                f"--LabApp.user_settings_dir={folder / 'user-settings'}",
                f"--LabApp.workspaces_dir={folder / 'workspaces'}",
                f"--ServerApp.root_dir={self.folder}",
                "--ServerApp.terminals_enabled=False",
            ],
            "folder": str(folder),
            "password": self.password,
            "environment": {
                **beside(with_extension(folder, environment)),
                "JUPYTER_CONFIG_DIR": str(folder / "config"),
                "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
                "JUPYTER_DATA_DIR": str(folder / "data"),
                "IPYTHONDIR": str(folder / "ipython"),
            },
        }
        (folder / "given.json").write_text(json.dumps(given))
        config = folder / "jupyterhub_config.py"
        config.write_text(CONFIG.format(given=str(folder / "given.json")))
        self._log = (folder / "hub.log").open("w+")
        self._process = subprocess.Popen(
            [hub, "--config", str(config)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env={**environment, "CONFIGPROXY_AUTH_TOKEN": secrets.token_hex(16)},
            start_new_session=True,
        )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                if httpx.get(f"{self.root}/hub/login", trust_env=False).is_success:
                    return
            except httpx.TransportError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"JupyterHub did not start:\n{self.said()}")
            time.sleep(0.2)

    def said(self) -> str:
        self._log.seek(0)
        return self._log.read()[-5000:]

    def log_in(self, page: Page) -> None:
        """As a person does, until JupyterLab is there."""
        page.goto(f"{self.root}/hub/login")
        page.get_by_label("Username").fill(USER)
        page.get_by_label("Password").fill(self.password)
        page.get_by_role("button", name="Sign in").click()
        try:
            expect(page.locator("#jp-main-statusbar")).to_be_visible(timeout=120_000)
        except AssertionError:
            pytest.fail(f"no JupyterLab at {page.url}:\n{self.said()}")

    def close(self) -> None:
        """The Hub ends its users' servers and its proxy itself."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(5)
        self._log.close()
