"""What Ray's processes do without, they do without; a cell's kernel does not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from mlcloud.client.session import Session
from mlcloud.cluster import lean
from tests.live import Embedded, printed

TRY = "import rfc3987_syntax; print('there')"


def tried(code: str, variables: dict[str, str]) -> bool:
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True)
    assert done.returncode == 0 or b"ImportError" in done.stderr or b"NotFound" in done.stderr
    return done.returncode == 0


def test_a_process_of_rays_does_without() -> None:
    plain = dict(os.environ)
    assert tried(TRY, plain), "JupyterLab brings it"
    assert not tried(TRY, lean.environment(plain))
    code = "from mlcloud.cluster import lean; lean.leave_out('wave'); "
    assert not tried(code + TRY, plain)
    assert not tried(code + "import wave", plain)
    code = "import wave; from mlcloud.cluster import lean; lean.leave_out('wave'); import wave"
    assert tried(code, plain), "what is there already stays"


def test_the_users_own_path_stays() -> None:
    for path in ("", "/one", f"/one{os.pathsep}/two"):
        variables = {"A": "1", **({"PYTHONPATH": path} if path else {})}
        lent = lean.environment(lean.environment(variables))
        assert lent["PYTHONPATH"].split(os.pathsep)[1:] == ([] if not path else path.split(":"))
        assert lean.restored(lent) == variables


def test_nothing_of_rays_imports_what_jsonschema_asks_for() -> None:
    code = "import sys, ray; assert 'jsonschema' in sys.modules; assert 'lark' not in sys.modules"
    assert tried(code, lean.environment(os.environ))


@pytest.mark.cluster
def test_a_cell_has_everything(session: Callable[..., Session], cluster: Embedded) -> None:
    s = session()
    s.run(TRY, quiet=True)
    assert "there" in printed(s)
    s.run("import os; path = os.environ.get('PYTHONPATH', '')", quiet=True)
    assert str(lean.FOLDER) not in s["path"]
    commands = "\n".join(each.command for each in cluster.processes())
    assert "ray/dashboard/dashboard.py" not in commands
    assert "ray.util.client.server" not in commands
