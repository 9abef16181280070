# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# What a cell's value is, and what magics answer: `Out`, `_`, payloads, `await`.

# %% tags=["value"]
# %%remote
40 + 2

# %% tags=["underscore-local"]
_ + 1

# %% tags=["underscore-remote-first"]
# %%remote
[1, 2, 3]

# %% tags=["underscore-remote"]
# %%remote
len(_)

# %% tags=["underscores"]
_, __

# %% tags=["none"]
# %%remote
None

# %% tags=["underscore-after-none"]
_

# %% tags=["semicolon"]
# %%remote
"not shown"
# %% tags=["semicolon-comment"]
# %%remote
"not shown"  # with a comment

# %% tags=["comment-after-value"]
# %%remote
"shown"
# and a comment

# %% tags=["assignment"]
# %%remote
x = 5

# %% tags=["out"]
# %%remote
{"key": ["a", "value"], "none": None}

# %% tags=["out-local"]
Out[max(Out)]["key"]

# %% tags=["string"]
# %%remote
"it's \n a string"

# %% tags=["long-list"]
# %%remote
list(range(2000))

# %% tags=["long-repr"]
# %%remote
dict.fromkeys(range(20), "x" * 50)


# %% tags=["set-and-class"]
# %%remote
class Point:
    def __init__(self, x):
        self.x = x

    def __repr__(self):
        return f"Point({self.x})"


{"b": {3, 1, 2}, "a": Point(1)}

# %% tags=["instance"]
# %%remote
Point(2)

# %% tags=["instance-local"]
_.x, isinstance(_, Point)


# %% tags=["function"]
# %%remote
def double(n):
    return n * 2


double

# %% tags=["exception-value"]
# %%remote
ValueError("as a value")

# %% tags=["interactivity-all"]
# %%remote
get_ipython().ast_node_interactivity = "all"

# %% tags=["interactivity-results"]
# %%remote
"first"
"second"
x = 1
x

# %% tags=["interactivity-last"]
# %%remote
get_ipython().ast_node_interactivity = "last_expr"

# %% tags=["interactivity-one"]
# %%remote
"first"
"second"

# %% tags=["precision"]
# %%remote
# %precision 3
3.14159265

# %% tags=["precision-back"]
# %%remote
# %precision %r
3.14159265

# %% tags=["await"]
# %%remote
import asyncio

await asyncio.sleep(0, "awaited")


# %% tags=["async-with"]
# %%remote
class Context:
    async def __aenter__(self):
        return "entered"

    async def __aexit__(self, *_):
        print("left")


async with Context() as c:
    print(c)


async def numbers():
    for i in range(3):
        yield i


[n async for n in numbers()]

# %% tags=["time"]
# %%remote
# %time sum(range(10))

# %% tags=["time-cell"]
# %%remote
# %%time
total = sum(range(10))
total

# %% tags=["writefile"]
# %%remote
# %%writefile made.py
# def made():
#     return "made"

# %% tags=["writefile-used"]
# %%remote
import sys

sys.path.insert(0, "")
from made import made

made()

# %% tags=["cat"]
# %%remote
# !cat made.py

# %% tags=["run"]
# %%remote
# %run made.py
made

# %% tags=["load"]
# %%remote
# %load made.py

# %% tags=["set-next-input"]
# %%remote
get_ipython().set_next_input("the next cell")


# %% tags=["help"]
# %%remote
def documented(a, b=2):
    """What it does."""


# documented?

# %% tags=["help-source"]
# %%remote
# len?

# %% tags=["help-pinfo2"]
# %%remote
# documented??

# %% tags=["page"]
# %%remote
from IPython.core import page

page.page("a long text\n" * 3)

# %% tags=["alias"]
# %%remote
# %alias greet echo hello %s
# %greet there

# %% tags=["env"]
# %%remote
# %env MINE=1
import os

os.environ["MINE"]

# %% tags=["macro"]
# %%remote
# %lsmagic?

# %% tags=["timeit-quiet"]
# %%remote
# %timeit -q -n 1 -r 1 1 + 1

# %% tags=["magic-value"]
# %%remote
# there = %pwd
type(there)

# %% tags=["unknown-magic"]
# %%remote
# %no_such_magic

# %% tags=["unknown-cell-magic"]
# %%remote
# %%no_such_magic
# text

# %% tags=["registered-magic"]
# %%remote
from IPython.core.magic import register_line_magic


@register_line_magic
def shout(line):
    return line.upper()


# %shout hello

# %% tags=["walrus"]
# %%remote
(y := 6) * 7

# %% tags=["expression-statement-then-print"]
# %%remote
print("a print")
"a value"

# %% tags=["exit-code"]
# %%remote
# !exit 3
_exit_code

# %% tags=["system-exit"]
# %%remote
import sys

sys.exit(3)

# %% tags=["after-exit"]
# %%remote
"still here"
