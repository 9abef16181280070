"""Keras models whose layers, variables and optimizers have names of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("keras") is None, reason="Keras is not installed"
)

# In a process of its own: Keras takes its backend when it is imported.
CODE = """
import builtins, tempfile
import keras, numpy as np
from mlcloud.kernel.namespace import RemoteSide
from mlcloud.kernel.snapshot import Snapshots
from mlcloud.store import Store

def notebook():
    return {"__name__": "__main__", "__builtins__": builtins}

CELL = '''
import keras, numpy as np
X = np.linspace(0, 1, 128, dtype="f4").reshape(32, 4)
given = keras.layers.Input((4,))
code = keras.layers.Dense(3, "relu", name="code")(given)
whole = keras.Model(given, keras.layers.Dense(4)(code))
encoder = keras.Model(given, code)
optimizer = keras.optimizers.Adam(0.01)
whole.compile(optimizer, "mse", metrics=["mae"])
history = whole.fit(X, X, epochs=2, verbose=0)
layer = whole.layers[1]
class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.parts = [keras.layers.Dense(2), keras.layers.Dense(1)]
        self.named = {"drop": keras.layers.Dropout(0.1)}
    def call(self, x):
        for part in self.parts:
            x = part(x)
        return self.named["drop"](x)
own = Own()
own.compile("sgd", "mse")
own.fit(X, X[:, :1], verbose=0)
'''
here, store = notebook(), Store(tempfile.mkdtemp())
exec(compile(CELL, "<cell>", "exec"), here)
side = RemoteSide(here)
snapshots = Snapshots(store, side)
body = snapshots.take()
assert not body["skipped"], body["skipped"]
groups = [set(group["names"]) for group in body["groups"]]
assert {"whole", "encoder", "optimizer", "layer"} <= next(g for g in groups if "whole" in g)
assert "own" not in next(g for g in groups if "whole" in g), "what Keras owns joins no names"
again = {str(group["keys"]): group for group in snapshots.take()["groups"]}
first = {str(group["keys"]): group for group in body["groups"]}
assert again == first, "an untouched model is not written again"

there = notebook()
restoring = Snapshots(store, RemoteSide(there)).restore(body)
list(restoring.cells())
assert not restoring.end()["missing"]
assert there["whole"].optimizer is there["optimizer"]
assert there["whole"].layers[1] is there["encoder"].layers[1] is there["layer"]
assert there["history"].history == here["history"].history
X = here["X"]
for name, wanted in (("whole", X), ("own", X[:, :1])):
    for each in (here, there):
        keras.utils.set_random_seed(1)
        each[name].fit(X, wanted, epochs=2, verbose=0)
    pairs = zip(here[name].get_weights(), there[name].get_weights(), strict=True)
    assert all(np.array_equal(*pair) for pair in pairs), name
assert int(there["optimizer"].iterations) == int(here["optimizer"].iterations) == 4
there["layer"].set_weights([np.ones((4, 3)), np.ones(3)])
assert np.array_equal(there["encoder"].get_weights()[0], np.ones((4, 3)))
try:
    there["own"].parts.append(keras.layers.Dense(7))
except ValueError as error:
    assert "cannot add new elements" in str(error), error
else:
    raise AssertionError("its lists are not watched: a model that was built takes no more layers")
there["whole"].save(tempfile.mkdtemp() + "/whole.keras")
there["whole"].summary(print_fn=lambda *_, **__: None)
"""


def test_layers_and_optimizers_stay_shared() -> None:
    env = {**os.environ, "KERAS_BACKEND": "torch"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
