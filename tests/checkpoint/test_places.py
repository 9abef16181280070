"""Large arrays are read to where they belong, and nothing but the saved state comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlcloud.checkpoint import Checkpoints

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

N = 600_000  # floats: beyond what is packed


@pytest.fixture(params=["blake3", "xxh3"])
def ckpts(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoints:
    return Checkpoints(str(tmp_path), "exp", verify=request.param)


def trained() -> tuple[Any, Any]:
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(700, 700), torch.nn.BatchNorm1d(700), torch.nn.Linear(700, 700)
    )
    opt = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        opt.zero_grad()
        model(torch.randn(4, 700)).square().mean().backward()
        opt.step()
    return model, opt


@pytest.mark.parametrize("fresh", [False, True])
def test_a_model_and_its_optimizer(ckpts: Checkpoints, fresh: bool) -> None:
    """And they go on as if nothing had been: also where the optimizer has not stepped yet."""
    model, opt = trained()
    ckpts.save({"model": model, "opt": opt}, 1)
    inputs = torch.randn(4, 700)

    def step() -> list[bytes]:
        opt.zero_grad()
        model(inputs).square().mean().backward()
        opt.step()
        return [bytes(p.detach().numpy()) for p in model.parameters()]

    expected = step()
    if fresh:
        model = torch.nn.Sequential(
            torch.nn.Linear(700, 700), torch.nn.BatchNorm1d(700), torch.nn.Linear(700, 700)
        )
        opt = torch.optim.AdamW(model.parameters())
    places = [p.data_ptr() for p in model.parameters()]
    assert ckpts.restore({"model": model, "opt": opt}) == 1
    assert [p.data_ptr() for p in model.parameters()] == places
    assert step() == expected
    # What was read to belongs to the optimizer alone: another restore changes no copy of it.
    held = opt.state_dict()["state"][0]["exp_avg"].clone()
    ckpts.save({"model": model, "opt": opt}, 2)
    ckpts.restore({"model": model}, 1)
    assert torch.equal(opt.state_dict()["state"][0]["exp_avg"], held)


def test_a_module_that_loads_in_its_own_way_is_asked(ckpts: Checkpoints) -> None:
    class Doubling(torch.nn.Linear):  # type: ignore[misc, name-defined]
        def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
            self.loaded = sorted(state)
            return super().load_state_dict(state, *args, **kwargs)

    def count(module: Any, keys: Any) -> None:
        module.seen = True

    own, hooked = Doubling(800, 800), torch.nn.Linear(800, 800)
    hooked.register_load_state_dict_post_hook(count)
    state = {"own": own, "hooked": hooked}
    wanted = own.weight.detach().clone()
    ckpts.save(state, 1)
    with torch.no_grad():
        own.weight.zero_()
    ckpts.restore(state)
    assert own.loaded == ["bias", "weight"]
    assert hooked.seen
    assert torch.equal(own.weight, wanted)


def test_one_array_for_two_that_were_saved(ckpts: Checkpoints) -> None:
    ckpts.save({"a": torch.full((N,), 1.0), "b": [torch.full((N,), 2.0)]}, 1)
    one = torch.zeros(N)
    state: dict[str, Any] = {"a": one, "b": [one]}
    ckpts.restore(state)
    assert state["a"] is one
    assert float(state["a"].mean()) == 1.0
    assert float(state["b"][0].mean()) == 2.0


def test_overlapping_views(ckpts: Checkpoints) -> None:
    base = torch.arange(2.0 * N)
    ckpts.save({"all": base, "head": base[:N], "tail": base[N:]}, 1)
    base.zero_()
    state = {"all": base, "head": base[:N], "tail": base[N:]}
    ckpts.restore(state)
    assert torch.equal(base, torch.arange(2.0 * N))
    assert state["head"].data_ptr() == base.data_ptr()


@pytest.mark.parametrize(
    "live",
    [
        lambda: torch.zeros(N, dtype=torch.float64),
        lambda: torch.zeros(2 * N)[::2],
        lambda: torch.zeros(N).requires_grad_(),
        lambda: torch.nn.Parameter(torch.zeros(N)),
    ],
    ids=["type", "gaps", "grad", "parameter"],
)
def test_other_forms_of_memory(ckpts: Checkpoints, live: Any) -> None:
    ckpts.save({"w": torch.arange(float(N))}, 1)
    tensor = live()
    state = {"w": tensor}
    ckpts.restore(state)
    assert state["w"] is tensor
    assert torch.equal(tensor.detach(), torch.arange(float(N)).to(tensor.dtype))


@pytest.mark.parametrize("live", ["plain", "fortran", "read-only"])
def test_arrays(ckpts: Checkpoints, live: str) -> None:
    ckpts.save({"w": np.arange(N, dtype=np.float32).reshape(2, -1)}, 1)
    array = np.zeros((2, N // 2), np.float32, order="F" if live == "fortran" else "C")
    array.flags.writeable = live != "read-only"
    state = {"w": array}
    ckpts.restore(state)
    assert (state["w"] is array) == (live != "read-only")
    assert np.array_equal(state["w"], np.arange(N, dtype=np.float32).reshape(2, -1))
