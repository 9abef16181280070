# %%
import collections

import numpy as np
import pandas as pd
import torch
from torch import nn

torch.manual_seed(0)
rng = np.random.default_rng(0)

# %%
rows = [[i, str(i), {"n": i}] for i in range(5_000)]
by_key = {row[1]: row for row in rows}
evens = rows[::2]
head = rows[0]

# %%
grid = rng.normal(size=(600, 1000))
left, right = grid[:, :500], grid[:, 500:]
diagonal = np.einsum("ii->i", grid[:600, :600])
flat = grid.reshape(-1)

# %%
head[2]["n"] = -1
head.append("changed through a name that is not `rows`")

# %%
flat[:100] = 0.0

# %%
def counter():
    seen = []

    def add(value):
        seen.append(value)
        return len(seen)

    def all_of():
        return seen

    return add, all_of


add, all_of = counter()
add(1)

# %%
add(2), add(rows[5])

# %%
frame = pd.DataFrame({"a": np.arange(200_000), "b": rng.normal(size=200_000).round(3)})
alias = frame
column = frame["b"]
views = {"frame": frame, "column": column}

# %%
alias["c"] = alias["a"] % 7

# %%
views["frame"].loc[3, "a"] = 333

# %%
class Node:
    registry = {}

    def __init__(self, name, parent=None):
        self.name, self.parent, self.children = name, parent, []
        Node.registry[name] = self
        if parent is not None:
            parent.children.append(self)


root = Node("root")
leaf = Node("leaf", Node("branch", root))

# %%
leaf.parent.parent.tag = "set from below"

# %%
Node.registry["leaf"].weight = 3

# %%
ring = []
ring.append(ring)
pair = (ring, head)
queue = collections.deque(rows[:50], maxlen=50)

# %%
queue.append(evens[7])
queue[0][2]["n"] = 77

# %%
model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 8))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
first_weight = model[0].weight
shared = first_weight.detach().numpy()

# %%
def step(rounds=400):
    for _ in range(rounds):
        data = torch.randn(64, 64)
        loss = model(data).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


losses = [step()]

# %%
losses.append(step())

# %%
shared[0, 0] = 0.5

# %%
tied = nn.Linear(256, 64)
tied.weight = nn.Parameter(model[0].weight.detach().T.contiguous())
bound = model.forward

# %%
cache = {}


def remember(key, cache=cache):
    cache[key] = rows[key]
    return cache[key]


remember(3)

# %%
remember(4)[2]["n"] = 4444

# %%
items = iter(rows)
first_two = [next(items), next(items)]

# %%
unrelated = sum(range(1_000_000))

# %%
by_key["12"][1] = "twelve"
evens.pop()

# %%
left += 1.0

# %%
del alias, column
frame.drop(columns="c", inplace=True)

# %%
log = [add, step, remember]
summary = {"rows": rows[:3], "losses": losses, "leaf": leaf}
