"""Kernelspecs: what is installed, by Python and by the shell, and what Jupyter makes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.provisioning import KernelProvisionerFactory

from mlcloud import errors
from mlcloud.cli import main
from mlcloud.client.notebook.options import Identity, Options, ending, identity, parse
from mlcloud.client.notebook.specs import DEFAULT, TEMPLATE, install, remove, specs


@pytest.fixture(autouse=True)
def jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))


def cli(*words: str) -> str:
    result = CliRunner().invoke(main, ["kernelspec", *words])
    assert result.exit_code == 0, result.output
    return result.output


def test_by_the_shell() -> None:
    told = cli("install", "--gpu", "A10G:1", "--market", "spot", "--idle-timeout", "15m", "--user")
    assert "installed mlcloud-a10g-1-spot (Python on mlcloud (A10G spot))" in told
    found = KernelSpecManager().get_kernel_spec("mlcloud-a10g-1-spot")
    assert found.display_name == "Python on mlcloud (A10G spot)"
    assert found.interrupt_mode == "message"
    assert KernelProvisionerFactory.instance().is_provisioner_available(found)
    start = found.argv.index("mlcloud.client.notebook") + 1
    options = parse(["-f", "x.json", *found.argv[start + 2 :]])
    assert options == Options(gpu="A10G:1", market="spot", idle_timeout="15m")
    assert "Python on mlcloud (A10G spot)" in cli("list")
    cli("remove", "mlcloud-a10g-1-spot")
    assert "mlcloud-a10g-1-spot" not in KernelSpecManager().find_kernel_specs()


def test_by_python() -> None:
    options = Options(
        cpus=2.0,
        memory="4GB",
        secret=("HF_TOKEN=keyring:hf/me",),
        data=("/data=s3://bucket/prefix",),
        footers=True,
        on_shutdown="keep",
    )
    made = install(options, name="two", user=True)
    assert made.display_name == "Python on mlcloud (2 CPUs, 4GB)"
    (listed,) = [each for each in specs() if each.name == "two"]
    assert listed.options == options
    assert "--memory 4GB" in repr(listed)
    assert options.wanted()["data"] == {"/data": "s3://bucket/prefix"}
    install(options, name="two", user=True)  # its own name may be installed again
    remove("two")
    with pytest.raises(errors.NotFound, match="'two'"):
        remove("two")


def test_the_one_that_comes_with_the_package(tmp_path: Path) -> None:
    """Where the wheel puts it, Jupyter finds a kernel of ours without options."""
    shutil.copytree(TEMPLATE, tmp_path / "jupyter" / "kernels" / DEFAULT)
    (found,) = [each for each in specs() if each.name == DEFAULT]
    assert (found.name, found.options) == (DEFAULT, Options())
    spec = KernelSpecManager().get_kernel_spec(DEFAULT)
    assert spec.display_name == "Python on mlcloud (CPU)"
    assert spec.argv[0] == "python"  # which jupyter_client takes for its own
    assert KernelProvisionerFactory.instance().is_provisioner_available(spec)


def test_what_no_session_could_have() -> None:
    for wrong in (
        Options(gpu="A10G:none"),
        Options(memory="much"),
        Options(market="cheap"),
        Options(idle_timeout="soon"),
        Options(on_shutdown="burn"),  # type: ignore[arg-type]
        Options(data=("/data",)),
    ):
        with pytest.raises(errors.UsageError):
            install(wrong, user=True)
    assert [each for each in specs() if each.name != "mlcloud"] == []


def test_others_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "jupyter" / "kernels" / "theirs"
    folder.mkdir(parents=True)
    spec = {"argv": ["python"], "display_name": "Theirs", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    with pytest.raises(errors.Conflict, match="theirs"):
        install(name="theirs", user=True)
    with pytest.raises(errors.NotFound):
        remove("theirs")
    assert json.loads((folder / "kernel.json").read_text()) == spec


def test_whose_session() -> None:
    """A notebook has its own for each shape; other kernels have theirs, which end with them."""
    here = {"JPY_SESSION_NAME": "/home/me/My first.ipynb", "MLCLOUD_KERNEL_ID": "1234-5678-90ab"}
    cpu, gpu = identity(Options(), here), identity(Options(gpu="A10G:1"), here)
    assert cpu.lasting
    assert cpu.name.startswith("My-first-")
    assert cpu != gpu
    assert identity(Options(footers=True), here) == cpu
    elsewhere = {"JPY_SESSION_NAME": "/home/you/My first.ipynb"}
    assert identity(Options(), elsewhere) != cpu
    console = {"JPY_SESSION_NAME": "/home/me/console-1-a1b2", "MLCLOUD_KERNEL_ID": "1234-5678-90ab"}
    assert identity(Options(), console) == Identity("kernel-1234567890ab", False)
    assert identity(Options(session="exp"), console) == Identity("exp", True)
    assert [ending(Options(), each) for each in (cpu, identity(Options(), console))] == [
        "park",
        "close",
    ]
    assert ending(Options(on_shutdown="keep"), cpu) == "keep"
    long = identity(Options(), {"JPY_SESSION_NAME": "/" + "ä" * 80 + "b" * 80 + ".ipynb"})
    assert len(long.name) <= 63
