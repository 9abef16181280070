"""The shell script that turns a machine into a node, and the one that makes it none again.

    worker()  a node of any cloud at its first boot: claim the machine, find or make a Python with
              mlcloud, write the node's file (0600), start its agent
    head()    the same, with the gateway's keeper instead of the agent
    deserted()  at each boot: a head's keeper is started again, and a machine that is to become a
                head, and does not, ends
    ending()  everything of ours on the machine ends, found by its mark; its folders go

POSIX sh and coreutils, so that it serves as cloud-init's user data, as a startup script and over
SSH. Run twice, it does nothing the second time. What it does is in `bootstrap.log` of the node's
folder. Where it fails it says why in one line: on stderr, in the file `failed`, and to the gateway
if there is one already. Whatever a worker's script holds may be read by whoever may read the
machine's user data: of secrets there is a join token, which is good for this node, once. A head's
script holds the files that it is given, so those of secrets go over SSH alone.

    ~/.mlcloud-node/claim                        whose worker it is: `instance cluster pid`
    ~/.mlcloud-node/<cluster>/<instance>/        node.json, logs, pid
    ~/.mlcloud-node/<cluster>/head/              the gateway's home; start.sh starts its keeper
    ~/.mlcloud-node/venv-<digest>/               kept for the next node
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import partial
from shlex import quote
from typing import Any

from mlcloud.cluster.headspec import Runtime

MARK, CLUSTER_MARK = "MLCLOUD_INSTANCE", "MLCLOUD_CLUSTER"
ROOT = '"${HOME:-/root}/.mlcloud-node"'
IN_USE = 75

_BEGIN = """#!/bin/sh
# Made by mlcloud: this machine becomes a node of the cluster {cluster}.
set -eu
umask 077
root={root}
folder="$root"/{cluster_id}/{folder}
mkdir -p "$folder"
exec 3>&2 4>&1 >>"$folder/bootstrap.log" 2>&1
rm -f "$folder/failed"
report() {{ :; }}
fail() {{
  code=$1; shift
  echo "$(date -u +%FT%TZ) failed: $*"
  printf '%s\\n' "$*" >"$folder/failed"
  report "$*"
  printf '%s\\n' "$*" >&3
  exit "$code"
}}
ended() {{
  code=$?
  [ "$code" = 0 ] || [ -s "$folder/failed" ] || fail "$code" "$(tail -n 1 "$folder/bootstrap.log")"
}}
trap ended EXIT
echo "$(date -u +%FT%TZ) bootstrap of {folder}"
"""

_CLAIM = """
# one worker of one cluster at a time
alive() {{ [ -n "$1" ] && tr '\\0' '\\n' <"/proc/$1/environ" 2>/dev/null | grep -qx "{mark}=$2"; }}
if [ -s "$root/claim" ]; then
  read -r instance cluster pid <"$root/claim" || :
  if [ "$instance" = {instance} ] && alive "$pid" "$instance"; then
    echo "$pid" >&4
    exit 0
  elif alive "$pid" "$instance"; then
    fail {in_use} "in use by the cluster $cluster (node $instance)"
  fi
fi
"""

_PYTHON = """
# a Python with mlcloud
python={python}
[ -x "$python" ] || python=$(command -v {python}) || fail 1 "there is no {python} on this machine"
"""

_VENV = """
# a Python with mlcloud, made once for what it has to have
python="$root/venv-{digest}/bin/python"
if ! [ -e "$root/venv-{digest}/ready" ]; then
  base=$(command -v python{minor} || command -v python3) ||
    fail 1 "there is no python{minor} on this machine, and no python3: install one"
  "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail 1 "$base is older than 3.10: install python{minor}"
{fetch}  "$base" -m venv --clear {inherit}"$root/venv-{digest}" ||
    fail 1 "$base -m venv does not work here: install python3-venv"
  "$python" -m pip install --quiet --disable-pip-version-check {what} ||
    fail 1 "what nodes need could not be installed: $(tail -n 1 "$folder/bootstrap.log")"
  touch "$root/venv-{digest}/ready"
fi
"""

# For a node's join token alone: indexes may have passwords in them.
_ASK = """
# the head's {what}
{python} - <<'MLCLOUD_END' ||
import os, ssl, urllib.request
os.chdir(os.path.expanduser("~/.mlcloud-node/{folder}"))
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.load_verify_locations("gateway.crt")
headers = {{"Authorization": "Bearer {token}"}}
request = urllib.request.Request("{url}/v1/nodes/{instance}/{what}", headers=headers)
with urllib.request.urlopen(request, timeout=120, context=context) as answer:
    with open("{file}", "wb") as file:
        file.write(answer.read())
MLCLOUD_END
  fail 1 "the head does not give its {what}: $(tail -n 1 "$folder/bootstrap.log")"
"""

_CONFIGURED = """
[ ! -s "$folder/pip.conf" ] || export PIP_CONFIG_FILE="$folder/pip.conf"
"""

_CHECK = """
look='import importlib.util as found, sys, mlcloud
found.find_spec("ray") or sys.exit("ray is not installed")
print(mlcloud.__version__)'
said=$(env {variables} "$python" -c "$look" 2>&1) ||
  fail 1 "mlcloud does not start with $python: $(printf '%s' "$said" | tail -n 1)"
[ "$said" = {version} ] || fail 1 "mlcloud $said is installed here, the cluster runs "{version}
"""

_START = """
# {what}, in a session of its own
cd "$folder"
env {variables} {mark}={instance} {cluster_mark}={cluster_id} setsid nohup "$python" -m {module} \\
  </dev/null >>"$folder/{log}" 2>&1 3>&- 4>&- &
pid=$!
echo "$pid" >"$folder/pid"
{claim}sleep 0.2
kill -0 "$pid" 2>/dev/null || fail 1 "{what} ended at once: $(tail -n 1 "$folder/{log}")"
echo "$pid" >&4
"""

_KEEP = """
# {what}, in a session of its own; a machine that boots again starts it again
{{
  printf "#!/bin/sh\\n# Made by mlcloud: starts {what}, unless it runs.\\n"
  printf "HOME='%s' folder='%s' python='%s'\\n" "${{HOME:-/root}}" "$folder" "$python"
  cat <<'MLCLOUD_END'
set -eu
umask 077
export HOME
cd "$folder"
exec 9>start.lock  # at a boot several may come at once, and the second keeper would give up
! command -v flock >/dev/null || flock 9
pid=$(cat pid 2>/dev/null) || pid=
{runs}
[ ! -s pip.conf ] || export PIP_CONFIG_FILE="$folder/pip.conf"
env {variables} {mark}={instance} {cluster_mark}={cluster_id} setsid nohup "$python" -m {module} \\
  </dev/null >>"$folder/{log}" 2>&1 3>&- 4>&- 9>&- &
echo $! >pid
sleep 0.2  # by then it shows its mark
MLCLOUD_END
}} >"$folder/start.sh"
sh "$folder/start.sh" || fail 1 "{what} could not be started"
pid=$(cat "$folder/pid")
kill -0 "$pid" 2>/dev/null || fail 1 "{what} ended at once: $(tail -n 1 "$folder/{log}")"
echo "$pid" >&4
"""

# A number alone may be another process's by now: after a reboot, or in a container made anew.
_RUNS = """if [ -n "$pid" ] && tr '\\0' '\\n' <"/proc/$pid/environ" 2>/dev/null |
  grep -qx '{cluster_mark}={cluster_id}'; then exit 0; fi"""

_REPORT = """
# what fails is told to the gateway too, with the token that this node alone has
report() {{
  command -v curl >/dev/null || return 0
  why=$(printf '%s' "$1" | tr -d '"\\\\' | tr '\\n\\t' '  ' | cut -c 1-400)
  printf 'header = "Authorization: Bearer %s"\\n' {token} |
    curl -sS -m 10 -o /dev/null -K - --cacert "$folder/gateway.crt" \\
      -H 'Content-Type: application/json' --data-binary "{{\\"why\\": \\"$why\\"}}" \\
      {url}/v1/nodes/{instance}/failed || :
}}
"""


def worker(
    *,
    cluster: str,
    cluster_id: str,
    instance: str,
    node: Mapping[str, Any],
    runtime: Runtime,
    version: str,
) -> str:
    """The script for a worker. `node` is what its agent reads (`nodefile.py`)."""
    gateway = node["gateway"]
    ask = partial(
        _ASK.format,
        folder=f"{cluster_id}/{instance}",
        token=node["join"],
        url=gateway["url"],
        instance=instance,
    )
    indexes = ask(python=quote(runtime.python or "python3"), what="indexes", file="pip.conf")
    fetch = ask(python='"$base"', what="wheel", file=runtime.wheel)
    parts = [
        _BEGIN.format(cluster=cluster, cluster_id=cluster_id, folder=instance, root=ROOT),
        _file("gateway.crt", gateway["certificate"]),
        _REPORT.format(token=quote(node["join"]), url=quote(gateway["url"]), instance=instance),
        _CLAIM.format(mark=MARK, instance=instance, in_use=IN_USE),
        _file("node.json", json.dumps(dict(node), indent=1)),
        *([indexes] if runtime.indexes else []),
        *_runtime(runtime, version, fetch if runtime.wheel else ""),
        _START.format(
            what="the agent",
            variables=_variables(runtime.variables),
            mark=MARK,
            cluster_mark=CLUSTER_MARK,
            instance=instance,
            cluster_id=cluster_id,
            module='mlcloud.cluster.agent "$folder/node.json"',
            log="node.log",
            claim=f'echo "{instance} {cluster} $pid" >"$root/claim"\n',
        ),
    ]
    return "".join(parts)


def head(
    *,
    cluster: str,
    cluster_id: str,
    instance: str,
    files: Mapping[str, str | bytes],
    variables: Mapping[str, str],
    runtime: Runtime,
    version: str,
) -> str:
    """The script for the head. `files` (0600) are put into the gateway's home, and `variables` are
    its settings; `MLCLOUD_HOME` is set here. A head that runs already takes `known_hosts` alone:
    a machine may have been away when it was brought up."""
    wanted = {**runtime.variables, **variables}
    runs = _RUNS.format(cluster_mark=CLUSTER_MARK, cluster_id=cluster_id)
    files = dict(files)
    known = {name: files.pop(name) for name in ("known_hosts",) if name in files}
    parts = [
        _BEGIN.format(cluster=cluster, cluster_id=cluster_id, folder="head", root=ROOT),
        *(_file(name, text) for name, text in known.items()),
        f'pid=$(cat "$folder/pid" 2>/dev/null) || pid=\n{runs}\n',
        *(_file(name, text) for name, text in files.items()),
        *_runtime(runtime, version),
        _KEEP.format(
            what="the gateway's keeper",
            runs=runs,
            variables=f'{_variables(wanted)} MLCLOUD_HOME="$folder"',
            mark=MARK,
            cluster_mark=CLUSTER_MARK,
            instance=instance,
            cluster_id=cluster_id,
            module="mlcloud.cluster.keeper",
            log="keeper.log",
        ),
    ]
    return "".join(parts)


def _runtime(runtime: Runtime, version: str, fetch: str = "") -> list[str]:
    """The parts of a script that find or make `$python`."""
    if runtime.python is not None:
        made = _PYTHON.format(python=quote(runtime.python))
    else:
        asked = (runtime.requirements, runtime.index_url, runtime.options)
        told = repr((*asked, runtime.digest, runtime.extras, runtime.inherit))
        what = [*map(quote, runtime.options), *map(quote, runtime.requirements or ())]
        if runtime.index_url:
            what = ["--index-url", quote(runtime.index_url), *what]
        if runtime.wheel:
            extras = f"[{','.join(runtime.extras)}]" if runtime.extras else ""
            what.append(f'"$folder/{runtime.wheel}{extras}"')
        made = _VENV.format(
            digest=hashlib.blake2b(told.encode(), digest_size=5).hexdigest(),
            minor=runtime.minor or "3",
            what=" ".join(what),
            fetch=fetch,
            inherit="--system-site-packages " if runtime.inherit else "",
        )
    setup = "".join(
        f"\n( {command}\n) || fail 1 {quote('setup: this failed: ' + command)}\n"
        for command in runtime.setup
    )
    check = _CHECK.format(variables=_variables(runtime.variables), version=quote(version))
    return [setup, _CONFIGURED, made, check]


def _variables(variables: Mapping[str, str]) -> str:
    return " ".join(f"{name}={quote(value)}" for name, value in variables.items())


def _file(name: str, content: str | bytes) -> str:
    end = "MLCLOUD_END"
    if isinstance(content, bytes):
        text = base64.b64encode(content).decode()
        return f"base64 -d >\"$folder/{name}\" <<'{end}'\n{text}\n{end}\n"
    text = content
    assert f"\n{end}\n" not in f"\n{text}\n"
    return f"cat >\"$folder/{name}\" <<'{end}'\n{text.rstrip()}\n{end}\n"


def deserted(cluster: str, after_s: float) -> str:
    """The script for a machine that is to become the head of `cluster`. It runs at each boot: what
    a head was that has not ended in peace, it is again. It ends itself when no process of the
    cluster has run on it for `after_s`: nobody came, or what came has ended."""
    looks = 10
    return f"""#!/bin/sh
# Made by mlcloud: this machine must not bill for ever where nobody uses it, nor after a reboot.
boot=/var/lib/cloud/scripts/per-boot
[ ! -d $boot ] || [ -e $boot/mlcloud-deserted ] || {{
  cp "$0" $boot/mlcloud-deserted && chmod 755 $boot/mlcloud-deserted
}}
for start in "${{HOME:-/root}}"/.mlcloud-node/{cluster}-*/head/start.sh \\
    /home/*/.mlcloud-node/{cluster}-*/head/start.sh; do
  [ -s "$start" ] || continue
  owner=$(stat -c %U "$start")
  if [ "$owner" = "$(id -un)" ]; then sh "$start"
  else su -s /bin/sh -c "sh '$start'" "$owner"
  fi
done
setsid nohup sh -c '
missing=0
while [ $missing -lt {looks} ]; do
  sleep {after_s / looks:g}
  if grep -qz "^{CLUSTER_MARK}={cluster}-" /proc/[0-9]*/environ 2>/dev/null; then
    missing=0
  else
    missing=$((missing + 1))
  fi
done
shutdown -h now
' </dev/null >/dev/null 2>&1 &
"""


def ending(mark: str, value: str, *, folders: str = "", claims: str = "") -> str:
    """The script that ends every process whose environment has `mark=value`, and removes
    `folders` below `~/.mlcloud-node`, and the claim if it matches the pattern `claims`.

    The agents are asked first, since they reap what is below them.
    """
    return f"""set -u
root={ROOT}
marked() {{ grep -lz -- '^{mark}={value}$' /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3; }}
for file in "$root"/{folders or "none"}/node.json "$root"/{folders or "none"}/*/node.json; do
  [ ! -e "$file" ] || echo '{{"ended_at": "now"}}' >"$file"  # no shutdown: it ends at once
done
for pid in $(cat "$root"/{folders or "none"}/pid "$root"/{folders or "none"}/*/pid 2>/dev/null); do
  marked | grep -qx "$pid" && kill -TERM "$pid" 2>/dev/null
done
tries=0
while [ -n "$(marked)" ] && [ $tries -lt 100 ]; do
  [ $tries -lt 30 ] || kill -KILL $(marked) 2>/dev/null
  tries=$((tries + 1)); sleep 0.1
done
left=$(marked | wc -l)
[ "$left" = 0 ] || {{ echo "$left processes do not end" >&2; exit 1; }}
for file in "$root"/{folders or "none"}/temporary "$root"/{folders or "none"}/*/temporary; do
  [ -s "$file" ] || continue
  temporary=$(cat "$file")
  case "$temporary" in */mlcloud-*/?*) rm -rf "$temporary"; rmdir "${{temporary%/*}}" ;; esac
done 2>/dev/null
{f'rm -rf "$root"/{folders}' if folders else ":"}
{f'grep -q "{claims}" "$root/claim" 2>/dev/null && rm -f "$root/claim"' if claims else ":"}
rmdir "$root"/* "$root" 2>/dev/null
exit 0
"""


def authorizing(public_key: str) -> str:
    """The script that lets a key in. Only once, however often it runs."""
    line = quote(public_key)
    return f"""set -eu
umask 077
keys="${{HOME:-/root}}/.ssh/authorized_keys"
mkdir -p "${{keys%/*}}"
touch "$keys"
grep -qxF {line} "$keys" || {{
  [ -z "$(tail -c 1 "$keys")" ] || echo >>"$keys"
  printf '%s\\n' {line} >>"$keys"
}}
"""


def forgetting(public_key: str) -> str:
    """The script that lets a key in no more."""
    return f"""set -eu
umask 077
keys="${{HOME:-/root}}/.ssh/authorized_keys"
[ -f "$keys" ] || exit 0
grep -vxF {quote(public_key)} "$keys" >"$keys.mlcloud" || :
cat "$keys.mlcloud" >"$keys"
rm -f "$keys.mlcloud"
"""
