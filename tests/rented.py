"""EC2 whose instances run: each is a machine in a network namespace, with what a machine there has.

    RunInstances ─► moto ─► a namespace at the private and public address that moto reports
                              sshd, for the key pair's key · user data, run once as cloud-init does
                              169.254.169.254 with the role's keys, if it was given a role
    TerminateInstances, `shutdown` on the machine, `reclaim` ─► its processes end, moto lists why

    with rented.account(folder) as region: region.door.url is the endpoint; region.machines

What a machine here shares with this computer is its file system and process ids, so nothing on it
may reach the computer's own: `shutdown` and `systemctl` are ours by a mount that only its processes
see, home and temporary folder are its own. Its packages are this computer's but mlcloud, as on an
image that somebody made; there is no index in its network. Its users are root and `ubuntu`, whose
`sudo` resets the environment, as sudo does; both have the same rights.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests import ec2, imds, netns
from tests.netns import run

REGION = "us-east-1"
METADATA = "169.254.169.254"
SHUTDOWN_S = 1.0  # a machine's processes have so long between SIGTERM and the end
# moto, with addresses of ours and the reason why EC2 ended an instance.
MOTO = """
import json, random, sys
from moto.ec2.models import elastic_network_interfaces, instances, vpcs
private, public, reasons = WHERE
create, terminate = vpcs.VPCBackend.create_vpc, instances.Instance.terminate
def create_vpc(self, cidr_block, *more, **named):
    mine = private if cidr_block == "172.31.0.0/16" else cidr_block
    return create(self, mine, *more, **named)
def end(self):
    if self._state.name == "terminated":  # once more, which EC2 takes and moto does not
        return self._state
    before = terminate(self)
    code = json.load(open(reasons)).get(self.id)
    if code:
        self.state_reason = instances.StateReason(code, code)
    return before
used = iter(random.sample(range(1, 65535), 1000))
def address():
    number = next(used)
    return f"{public}.{number // 256}.{number % 256}"
vpcs.VPCBackend.create_vpc = create_vpc
instances.Instance.terminate = end
elastic_network_interfaces.random_public_ip = address
from moto.server import main
main()
"""
OFF = """#!/bin/sh
# Every word of systemctl's and shutdown's means the same here.
echo "$0 $*" >{off}
"""
SUDO = """#!/bin/sh
# The rights are there already; the environment is the system's.
[ "$1" = -n ] && shift
exec env -i {variables} "$@"
"""


@dataclass(eq=False)
class Rented(netns.Machine):
    """An instance's machine. `said` is what its metadata service says, beside who it is."""

    instance: str = ""
    role: str = ""
    zone: str = ""
    user_data: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    booted: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def off(self) -> Path:
        return self.folder / "off"

    @property
    def programs(self) -> Path:
        return self.folder / "bin"

    @property
    def _inside(self) -> list[str]:
        """Ours in place of what would reach the computer: this machine's processes alone see it."""
        mounts = "".join(
            f"mount --bind {ours} {theirs}; "
            for ours, theirs in (
                (self.programs / "systemctl", shutil.which("systemctl")),
                (self.folder / "passwd", "/etc/passwd"),
            )
            if theirs is not None
        )
        namespace = ["ip", "netns", "exec", self.namespace]
        return [*namespace, "sh", "-c", f'set -e; {mounts}exec "$@"', "sh"]

    def prepare(self, packages: Path, variables: dict[str, str]) -> None:
        self.programs.mkdir(parents=True)
        self.variables = {
            "HOME": str(self.home),
            "TMPDIR": str(self.folder / "tmp"),
            "PATH": f"{self.programs}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(packages),
            "PIP_NO_INDEX": "1",
            **variables,
        }
        said = " ".join(f"{name}='{value}'" for name, value in self.variables.items())
        python = f"{sys.version_info[0]}.{sys.version_info[1]}"
        base = f'#!/bin/sh\nexec {Path(sys.executable).resolve()} "$@"\n'
        for name, text in {
            **dict.fromkeys(("systemctl", "shutdown", "poweroff"), OFF.format(off=self.off)),
            **dict.fromkeys(("python3", f"python{python}"), base),
            "sudo": SUDO.format(variables=said),
        }.items():
            (self.programs / name).write_text(text)
            (self.programs / name).chmod(0o755)
        users = [
            line for line in Path("/etc/passwd").read_text().splitlines() if "ubuntu:" not in line
        ]
        home = self.folder / "ubuntu"
        home.mkdir()
        lines = [*users, f"ubuntu:x:0:0::{home}:/bin/sh", ""]
        (self.folder / "passwd").write_text("\n".join(lines))
        self.say()

    @property
    def login(self) -> dict[str, str]:
        """Each user has the home that passwd says."""
        return {name: value for name, value in self.variables.items() if name != "HOME"}

    def say(self, **said: str | None) -> None:
        """What the metadata service says from now on; None: no more."""
        for name, text in said.items():
            self.said.pop(name, None)
            if text is not None:
                self.said[name] = text
        until = datetime.now(timezone.utc) + timedelta(hours=6)
        keys = {
            "Code": "Success",
            "LastUpdated": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
            "Type": "AWS-HMAC",
            "AccessKeyId": f"ASIA{self.instance[2:18].upper()}",
            "SecretAccessKey": "of-the-role",
            "Token": "of-the-role",
            "Expiration": f"{until:%Y-%m-%dT%H:%M:%SZ}",
        }
        credentials = "iam/security-credentials/"
        role = {credentials: self.role, credentials + self.role: json.dumps(keys)}
        everything = {
            "instance-id": self.instance,
            "placement/availability-zone": self.zone,
            "placement/region": self.zone[:-1],
            "events/maintenance/scheduled": "[]",
            **(role if self.role else {}),
            **self.said,
        }
        temporary = self.folder / ".imds.json"
        temporary.write_text(json.dumps(everything))
        temporary.replace(self.folder / "imds.json")

    def pids(self) -> list[int]:
        return [pid for pid in super().pids() if not self._serves(pid)]

    def _serves(self, pid: int) -> bool:
        try:
            return str(imds.__file__).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return True

    def start(self, *words: str, log: str) -> subprocess.Popen[bytes]:
        given = [f"{name}={value}" for name, value in self.variables.items()]
        with open(self.folder / log, "ab") as file:
            return subprocess.Popen(
                [*self._inside, "env", "-i", *given, *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=self.folder,
                start_new_session=True,
            )

    def end(self) -> None:
        """As an operating system does: SIGTERM, a moment, and all is gone."""
        if self.ended.is_set():
            return
        self.ended.set()
        for number, wait in ((signal.SIGTERM, SHUTDOWN_S), (signal.SIGKILL, 2.0)):
            for pid in self._everything():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            until = time.monotonic() + wait
            while self._everything() and time.monotonic() < until:
                time.sleep(0.02)
        self.destroy()

    def reboot(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 5
        while self.pids() and time.monotonic() < until:
            time.sleep(0.02)
        temporary = self.folder / "tmp"
        shutil.rmtree(temporary)
        temporary.mkdir()
        self.sshd = None
        self.restart_sshd()

    def _everything(self) -> list[int]:
        if not Path("/run/netns", self.namespace).exists():
            return []
        words = ["ip", "netns", "pids", self.namespace]
        found = subprocess.run(words, capture_output=True, text=True).stdout.split()
        return [int(pid) for pid in found]


class Region:
    """The machines of one account, by instance id; those that ended too."""

    def __init__(self, door: ec2.Door, folder: Path, bridge: str, tag: str) -> None:
        self.door, self.folder, self.bridge, self.tag = door, folder, bridge, tag
        self.machines: dict[str, Rented] = {}
        self.keys: dict[str, str] = {}
        self.checkip = ""  # who asks here is told his address
        self.closing = threading.Event()
        self._packages = folder / "packages"
        _link_packages(self._packages)
        self._threads: list[threading.Thread] = []
        self._in_thread(self._watch)
        door.listeners.append(self._hear)

    @property
    def running(self) -> list[Rented]:
        return [each for each in self.machines.values() if not each.ended.is_set()]

    def machine(self, pid: int) -> Rented:
        """The one on which a process runs."""
        return next(each for each in self.running if pid in each.pids())

    def left(self) -> list[str]:
        """What the account still has, beside what each account has."""
        ec2, iam = (client(self.door, REGION, name) for name in ("ec2", "iam"))
        reservations = ec2.describe_instances()["Reservations"]
        found = [
            each["InstanceId"]
            for reservation in reservations
            for each in reservation["Instances"]
            if each["State"]["Name"] != "terminated"
        ]
        for listed, key, name in (
            (ec2.describe_volumes(), "Volumes", "VolumeId"),
            (ec2.describe_addresses(), "Addresses", "PublicIp"),
            (ec2.describe_key_pairs(), "KeyPairs", "KeyName"),
            (ec2.describe_network_interfaces(), "NetworkInterfaces", "NetworkInterfaceId"),
            (iam.list_roles(), "Roles", "RoleName"),
            (iam.list_instance_profiles(), "InstanceProfiles", "InstanceProfileName"),
        ):
            found += [each[name] for each in listed[key]]
        groups = ec2.describe_security_groups()["SecurityGroups"]
        return found + [each["GroupName"] for each in groups if each["GroupName"] != "default"]

    def why_ended(self, machine: Rented) -> str:
        """As EC2 tells it."""
        asked = {"InstanceIds": [machine.instance]}
        listed = client(self.door, REGION).describe_instances(**asked)
        return str(listed["Reservations"][0]["Instances"][0]["StateReason"]["Code"])

    def reclaim(self, machine: Rented, notice_s: float) -> None:
        """Take a spot instance back: by the notice, and by the end when it has run out."""
        at = datetime.now(timezone.utc) + timedelta(seconds=notice_s)
        action = {"action": "terminate", "time": f"{at:%Y-%m-%dT%H:%M:%SZ}"}
        if notice_s:
            machine.say(**{"spot/instance-action": json.dumps(action)})
        timer = threading.Timer(notice_s, self._take, (machine, "Server.SpotInstanceTermination"))
        timer.daemon = True
        timer.start()

    def reboot(self, machine: Rented) -> None:
        """All of it stops at once and begins again, with its disk and addresses. What cloud-init
        runs at each boot is the copy that user data has put there: the same script."""
        machine.reboot()
        machine.start(str(machine.folder / "user-data"), log="cloud-init.log")

    # --- what EC2 is asked ------------------------------------------------------------------------

    def _hear(self, action: str, fields: dict[str, str], answer: bytes) -> None:
        if action == "ImportKeyPair":
            key = base64.b64decode(fields["PublicKeyMaterial"]).decode()
            self.keys[fields["KeyName"]] = key
        elif action == "RunInstances":
            self._launch(fields, answer.decode())
        elif action == "TerminateInstances":
            for name, instance in fields.items():
                if name.startswith("InstanceId.") and instance in self.machines:
                    self._in_thread(self.machines[instance].end)

    def _launch(self, fields: dict[str, str], answer: str) -> None:
        instance = _told(answer, "instanceId")
        if instance in self.machines:
            return
        number = len(self.machines) + 1
        machine = self.machines[instance] = Rented(
            name=f"i{number}",
            address=_told(answer, "privateIpAddress"),
            namespace=f"ml{self.tag}i{number}",
            link=f"mlv{self.tag}{number}",
            folder=self.folder / str(number),
            public=_told(answer, "ipAddress"),
            instance=instance,
            role=fields.get("IamInstanceProfile.Name", ""),
            zone=_told(answer, "availabilityZone"),
        )
        user_data = base64.b64decode(fields.get("UserData", ""))
        if user_data[:2] == b"\x1f\x8b":
            user_data = gzip.decompress(user_data)
        machine.user_data = user_data.decode()
        key = self.keys.get(fields.get("KeyName", ""), "")
        machine.folder.mkdir(mode=0o755)
        services = {"AWS_ENDPOINT_URL": self.door.url, "AWS_ENDPOINT_URL_S3": self.door.moto}
        machine.prepare(self._packages, services)
        machine.plug_in(self.bridge, 16)
        run("ip", "route", "add", f"{machine.public}/32", "dev", self.bridge)
        self._in_thread(lambda: self._boot(machine, key, user_data))

    def _boot(self, machine: Rented, key: str, user_data: bytes) -> None:
        run("ip", "-n", machine.namespace, "addr", "add", f"{METADATA}/32", "dev", "lo")
        machine.start(
            *(sys.executable, "-S", str(imds.__file__), "imds.json", METADATA, "80"), log="imds.log"
        )
        machine.start_sshd(key)
        if user_data:
            script = machine.folder / "user-data"
            script.write_bytes(user_data)
            script.chmod(0o700)
            machine.start(str(script), log="cloud-init.log")
        machine.booted.set()

    # --- what ends by itself ----------------------------------------------------------------------

    def _watch(self) -> None:
        """A machine whose operating system was shut down: launched with that, it is terminated."""
        while not self.closing.wait(0.1):
            for machine in self.running:
                if machine.off.exists():
                    self._take(machine, "Client.InstanceInitiatedShutdown")

    def _take(self, machine: Rented, reason: str) -> None:
        file = self.folder / "reasons.json"
        reasons = {**json.loads(file.read_text()), machine.instance: reason}
        file.write_text(json.dumps(reasons))
        client(self.door, machine.zone[:-1]).terminate_instances(InstanceIds=[machine.instance])
        machine.end()

    def _in_thread(self, work: Callable[[], Any]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        self.closing.set()
        for thread in self._threads:
            thread.join(20)
        for machine in self.running:
            machine.end()

    def logs(self) -> str:
        """What the machines wrote, for who looks at a failure."""
        found = sorted(path for path in self.folder.rglob("*.log") if "packages" not in path.parts)
        return "\n".join(f"== {path}\n{path.read_text(errors='replace')[-3000:]}" for path in found)


def client(door: ec2.Door, region: str, service: str = "ec2") -> Any:
    """boto3's, as the cloud itself: past the door, so nobody hears of it."""
    import boto3

    keys = {"aws_access_key_id": "aws", "aws_secret_access_key": "aws"}
    return boto3.client(service, region, endpoint_url=door.moto, **keys)


@contextlib.contextmanager
def account() -> Iterator[Region]:
    """An account of its own, with a VPC that is a network of this computer."""
    tag = secrets.token_hex(2)
    bridge = f"mlb{tag}"
    root = Path(tempfile.mkdtemp(prefix="mr", dir="/tmp"))
    root.chmod(0o755)
    (root / "reasons.json").write_text("{}")
    number = 20 + secrets.randbelow(70)
    private, public = f"10.{number}", f"198.{18 + secrets.randbelow(2)}"
    where = (f"{private}.0.0/16", public, str(root / "reasons.json"))
    start = f"WHERE = {where!r}\n{MOTO}"
    run("ip", "link", "add", bridge, "type", "bridge")
    try:
        gateway = f"{private}.255.254"
        run("ip", "addr", "add", f"{gateway}/16", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
        with ec2.door(gateway, start) as door, _checkip(gateway) as checkip:
            region = Region(door, root, bridge, tag)
            region.checkip = checkip
            try:
                yield region
            finally:
                region.close()
    finally:
        subprocess.run(["ip", "link", "del", bridge], check=False)
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def _checkip(address: str) -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"{self.client_address[0]}\n".encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((address, 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{address}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _told(answer: str, name: str) -> str:
    found = re.search(rf"<{name}>([^<]+)</{name}>", answer)
    assert found is not None, (name, answer)
    return found[1]


def _link_packages(folder: Path) -> None:
    """This computer's packages, all but mlcloud: machines get that from their head."""
    folder.mkdir()
    for path in map(Path, sys.path):
        if path.name in ("site-packages", "dist-packages"):
            for each in path.iterdir():
                name = each.name.lower()
                if "mlcloud" not in name and not (folder / each.name).exists():
                    (folder / each.name).symlink_to(each)
