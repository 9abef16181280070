"""OpenSSH as a subprocess: a script run on another machine, and what went wrong in one line.

    run(target, script) ── stdin ──► sh -s on that machine     (nothing of it on a command line)

Host keys are pinned in a known_hosts file of the cluster's own: the first contact writes it, every
later one must find the same key. There is no agent forwarding and no password, and no connection is
shared by a master in the background: one would outlive who made it, and hang after a sleep.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlcloud.errors import CloudRefused, CredentialsMissing, MLCloudError, NoCapacity

TEMPFAIL = 75  # sysexits.h: a script's way to say that the machine is in use
LOST = 255  # ssh's own failures


@dataclass(frozen=True)
class Target:
    """Where and as whom to log in. `sudo`: scripts run as root through `sudo -n`."""

    host: str
    user: str
    known_hosts: Path
    port: int = 22
    key: Path | None = None
    jump: str | None = None
    sudo: bool = False
    connect_s: int = 8
    pinned: bool = False  # known_hosts has its key already: a new one is refused

    def __str__(self) -> str:
        return f"{self.user}@{self.host}" + (f":{self.port}" if self.port != 22 else "")

    def command(self, *options: str) -> list[str]:
        """`ssh` with everything but what to do there."""
        settings = {
            "BatchMode": "yes",
            "PasswordAuthentication": "no",
            "StrictHostKeyChecking": "yes" if self.pinned else "accept-new",
            "UserKnownHostsFile": _quoted(self.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "HashKnownHosts": "no",
            "UpdateHostKeys": "no",
            "CheckHostIP": "no",
            "ConnectTimeout": str(self.connect_s),
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "ControlMaster": "no",
            "ControlPath": "none",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "LogLevel": "ERROR",
        }
        if self.key is not None:
            settings |= {"IdentityFile": _quoted(self.key), "IdentitiesOnly": "yes"}
        if self.jump:
            settings["ProxyJump"] = self.jump
        words = ["ssh", "-T", "-a", "-x", "-p", str(self.port), "-l", self.user]
        for name, value in settings.items():
            words += ["-o", f"{name}={value}"]
        return [*words, *options]


def run(target: Target, script: str, *, timeout: float = 120.0) -> str:
    """Run a POSIX shell script there and return what it prints.

    Raises `NoCapacity` where the machine cannot be reached or says it is in use,
    `CredentialsMissing` where it takes no key of ours, `CloudRefused` for a changed host key and
    everything else.
    """
    there = "exec sudo -n sh -s" if target.sudo else "exec sh -s"
    try:
        done = subprocess.run(
            [*target.command(), "--", target.host, there],
            input=script,
            capture_output=True,
            text=True,
            timeout=timeout,
            start_new_session=True,  # an interrupt in a notebook is not ssh's
        )
    except FileNotFoundError:
        raise CredentialsMissing("`ssh` is not installed: install OpenSSH's client") from None
    except subprocess.TimeoutExpired:
        raise NoCapacity(f"{target} did not finish within {timeout:g} s") from None
    if done.returncode == 0:
        return done.stdout
    raise explain(target, done.returncode, done.stderr)


def explain(target: Target, code: int, stderr: str) -> MLCloudError:
    """Why ssh, or a script on the other side, failed."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit status {code}"
    if code == TEMPFAIL:
        return NoCapacity(f"{target.host}: {last}")
    if target.sudo and re.search(r"sudo: |sudo:? (command )?not found", stderr):
        return CloudRefused(
            f"{target}: root's rights cannot be had there without a password ({last}): allow "
            f"`sudo -n` to {target.user}, log in as root, or leave `sudo` out"
        )
    if code != LOST:
        return CloudRefused(f"{target}: {last}")
    if "HOST IDENTIFICATION HAS CHANGED" in stderr or "Host key verification failed" in stderr:
        return CloudRefused(
            f"{target.host} has another host key than the one it had: nothing was sent to it. Was "
            "it set up anew? Then remove its line: ssh-keygen -f "
            f"{shlex.quote(str(target.known_hosts))} -R {shlex.quote(_known_as(target))}"
        )
    if "Permission denied" in stderr or "Too many authentication failures" in stderr:
        key = f"the key {target.key}" if target.key else "any key of ssh's agent or ~/.ssh"
        return CredentialsMissing(
            f"{target.host} does not take {key} for {target.user}: name the right `user` and "
            f"`key`, or add its public half to ~{target.user}/.ssh/authorized_keys there"
        )
    if "identity file" in stderr.lower() or "bad permissions" in stderr.lower():
        return CredentialsMissing(f"{target}: {last}")
    return NoCapacity(f"{target.host} cannot be reached: {_short(last)}")


def _known_as(target: Target) -> str:
    return target.host if target.port == 22 else f"[{target.host}]:{target.port}"


def forget(known_hosts: Path, host: str) -> None:
    """The host at this address is another one now: its key is pinned at the next contact."""
    if known_hosts.exists():
        lines = known_hosts.read_text().splitlines()
        kept = [line for line in lines if line.split(" ")[0] != host]
        known_hosts.write_text("".join(f"{line}\n" for line in kept))


def _short(line: str) -> str:
    return re.sub(r"^ssh: connect to host \S+ port \d+: ", "", line)


def _quoted(path: Path) -> str:
    """ssh splits its own options at spaces."""
    text = str(path)
    return f'"{text}"' if " " in text else text


def make_key(path: Path, comment: str) -> str:
    """A new ed25519 key at `path` (0600), unless there is one; returns its public half."""
    public = path.with_name(path.name + ".pub")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        words: Sequence[str] = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment)
        try:
            subprocess.run([*words, "-f", str(path)], check=True, capture_output=True)
        except FileNotFoundError:
            raise CredentialsMissing(
                "`ssh-keygen` is not installed: install OpenSSH's client"
            ) from None
    return public.read_text().strip()
