"""Machines of one's own on one computer: network namespaces with addresses, sshd and a home each.

    root namespace ── bridge 10.x.y.1 ─┬─ veth ── namespace "a" 10.x.y.11 ── sshd
                                       └─ veth ── namespace "b" 10.x.y.12 ── sshd

The machines share this computer's file system and process ids, and nothing else: each has its own
loopback, its own host key, home and temporary folder. Needs root, iproute2 and openssh-server.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


def why_not() -> str:
    """Why there can be no such machines here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = {
        "iproute2": shutil.which("ip"),
        "openssh-client": shutil.which("ssh"),
        "openssh-server": Path(SSHD).exists(),
    }
    wanted = " ".join(package for package, there in missing.items() if not there)
    # Where the packages are meant to be there, their lack is no reason to skip.
    if wanted and os.environ.get("MLCLOUD_REQUIRE_MACHINES") != "1":
        return f"apt-get install {wanted}"
    probe = f"mlp{secrets.token_hex(3)}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode:
        return "this kernel or container allows no network namespaces"
    subprocess.run(["ip", "netns", "del", probe], check=False)
    return ""


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


@dataclass
class Machine:
    """One namespace; `home` is what its users see as HOME."""

    name: str
    address: str
    namespace: str
    link: str
    folder: Path
    sshd: subprocess.Popen[bytes] | None = None
    public: str = ""  # another address, by which it is reached from outside

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def start_sshd(self, public_key: str) -> None:
        self.home.mkdir(parents=True)
        (self.folder / "tmp").mkdir()
        keys = self.home / ".ssh" / "authorized_keys"
        keys.parent.mkdir(mode=0o700)
        keys.write_text(public_key + "\n")
        self.new_host_key()
        listen = "".join(f"ListenAddress {each}\n" for each in self.addresses)
        (self.folder / "sshd_config").write_text(
            f"Port 22\n{listen}HostKey {self.folder / 'host_key'}\n"
            f"PidFile {self.folder / 'sshd.pid'}\nAuthorizedKeysFile {keys}\n"
            "PubkeyAuthentication yes\nPasswordAuthentication no\nUsePAM no\nStrictModes no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
            f"SetEnv {' '.join(f'{name}={value}' for name, value in self.login.items())}\n"
            "MaxStartups 100\n"
        )
        self.restart_sshd()

    def new_host_key(self) -> None:
        for old in self.folder.glob("host_key*"):
            old.unlink()
        path = str(self.folder / "host_key")
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", path)

    def restart_sshd(self) -> None:
        self.stop_sshd()
        Path("/run/sshd").mkdir(exist_ok=True)
        with open(self.folder / "sshd.log", "ab") as log:
            self.sshd = subprocess.Popen(
                [*self._inside, SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + 10
        while ":22 " not in run(*self._inside, "ss", "-ltn"):
            assert self.sshd.poll() is None, (self.folder / "sshd.log").read_text()
            assert time.monotonic() < until, "sshd does not listen"
            time.sleep(0.02)

    def stop_sshd(self) -> None:
        if self.sshd is not None:
            self.sshd.terminate()
            self.sshd.wait(10)
            self.sshd = None

    @property
    def login(self) -> dict[str, str]:
        """Variables of whoever logs in."""
        return {"HOME": str(self.home), "TMPDIR": str(self.folder / "tmp")}

    @property
    def addresses(self) -> list[str]:
        return [each for each in (self.address, self.public) if each]

    @property
    def _inside(self) -> list[str]:
        return ["ip", "netns", "exec", self.namespace]

    def cut(self) -> None:
        """Pull the network cable."""
        run("ip", "link", "set", self.link, "down")

    def mend(self) -> None:
        run("ip", "link", "set", self.link, "up")

    @contextlib.contextmanager
    def out_of_reach(self) -> Iterator[None]:
        """From here alone, as when a laptop sleeps: what is sent gets lost, without a word."""
        run("ip", "route", "add", "blackhole", f"{self.address}/32")
        try:
            yield
        finally:
            run("ip", "route", "del", "blackhole", f"{self.address}/32")

    def pids(self) -> list[int]:
        """Every process of the machine but sshd's own."""
        found = [int(word) for word in run("ip", "netns", "pids", self.namespace).split()]
        return [pid for pid in found if not _is_sshd(pid)]

    def kill(self) -> None:
        """All its processes at once, as if it lost its power; sshd stays, so it is back at once."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)

    def listening(self) -> list[str]:
        """`address:port` of every TCP listener of the machine but sshd's."""
        lines = run(*self._inside, "ss", "-H", "-ltn").splitlines()
        found = [line.split()[3] for line in lines]
        return [each for each in found if each not in [f"{ip}:22" for ip in self.addresses]]

    # --- its life ---------------------------------------------------------------------------------

    def plug_in(self, bridge: str, prefix: int) -> None:
        """Make the namespace, with a cable to `bridge`."""
        inner = f"{self.link}i"
        run("ip", "netns", "add", self.namespace)
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", inner)
        run("ip", "link", "set", self.link, "master", bridge)
        run("ip", "link", "set", self.link, "up")
        run("ip", "link", "set", inner, "netns", self.namespace)
        inside = ["ip", "-n", self.namespace]
        run(*inside, "addr", "add", f"{self.address}/{prefix}", "dev", inner)
        if self.public:
            run(*inside, "addr", "add", f"{self.public}/32", "dev", inner)
        run(*inside, "link", "set", inner, "up")
        run(*inside, "link", "set", "lo", "up")

    def destroy(self) -> None:
        self.stop_sshd()
        if Path("/run/netns", self.namespace).exists():
            self.kill()
        subprocess.run(["ip", "netns", "del", self.namespace], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self.link], check=False, capture_output=True)


def _is_sshd(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip().startswith("sshd")
    except OSError:
        return True


@contextlib.contextmanager
def machines(*names: str, public_key: str) -> Iterator[dict[str, Machine]]:
    """Machines of these names on a network of their own; they trust `public_key` for root."""
    tag = secrets.token_hex(2)
    net = f"10.{100 + secrets.randbelow(100)}.{secrets.randbelow(250)}"
    bridge = f"mlb{tag}"
    root = Path(tempfile.mkdtemp(prefix="mn", dir="/tmp"))
    made: dict[str, Machine] = {}
    run("ip", "link", "add", bridge, "type", "bridge")
    try:
        run("ip", "addr", "add", f"{net}.1/24", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
        for number, name in enumerate(names, 11):
            machine = made[name] = Machine(
                name, f"{net}.{number}", f"ml{tag}{name}", f"mlv{tag}{number}", root / name
            )
            machine.plug_in(bridge, 24)
            machine.start_sshd(public_key)
        yield made
    finally:
        for machine in made.values():
            machine.destroy()
        subprocess.run(["ip", "link", "del", bridge], check=False)
        shutil.rmtree(root, ignore_errors=True)
