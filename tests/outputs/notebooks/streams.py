# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# What a cell writes. Every tagged cell runs twice: remotely, and in a plain kernel without its
# `%%remote` line.

# %% tags=["interleaved"]
# %%remote
import sys

print("one")
print("two", file=sys.stderr)
print("three")
print("four", file=sys.stderr)
print("five")

# %% tags=["no-newline"]
# %%remote
print("no newline", end="")

# %% tags=["after-no-newline"]
# %%remote
print("a fresh cell")

# %% tags=["write"]
# %%remote
sys.stdout.write("written\n")

# %% tags=["writelines"]
# %%remote
sys.stderr.writelines(["a\n", "b\n", "c"])

# %% tags=["unicode"]
# %%remote
print("naïve Ünïcödé 漢字 🦊 \u200b‮ \x00 \x07", "\N{COMBINING ACUTE ACCENT}")

# %% tags=["ansi"]
# %%remote
print("\x1b[31mred\x1b[0m \x1b[1;38;5;208morange\x1b[0m \x1b[2Kcleared")

# %% tags=["carriage-return"]
# %%remote
for i in range(5):
    print(f"\rstep {i}", end="")
print("\b\b.. done")

# %% tags=["long-line"]
# %%remote
print("x" * 1_000_000)

# %% tags=["many-lines"]
# %%remote
for i in range(3000):
    print(i, "line")

# %% tags=["bytes-like"]
# %%remote
import io

buffer = io.StringIO()
print("elsewhere", file=buffer)
print(repr(buffer.getvalue()))

# %% tags=["print-flush"]
# %%remote
import time

for i in range(3):
    print(i, end=" ", flush=True)
    time.sleep(0.01)

# %% tags=["logging"]
# %%remote
import logging

logging.warning("watch %s", "out")
logging.getLogger("mine").error("broken")
logging.info("not shown")

# %% tags=["logging-exception"]
# %%remote
try:
    {}["gone"]
except KeyError:
    logging.exception("it went")

# %% tags=["logging-config"]
# %%remote
logging.basicConfig(
    level=logging.INFO, format="%(levelname)s:%(message)s", stream=sys.stdout, force=True
)
logging.info("shown now")

# %% tags=["warnings"]
# %%remote
import warnings

warnings.warn("old ways")

# %% tags=["warnings-deprecation"]
# %%remote
warnings.warn("older ways", DeprecationWarning)

# %% tags=["traceback-printed"]
# %%remote
import traceback

try:
    1 / 0
except ZeroDivisionError:
    traceback.print_exc(limit=0)

# %% tags=["pprint"]
# %%remote
from pprint import pprint

pprint({"numbers": list(range(40)), "nested": {"a": {"b": ("c", None)}}})

# %% tags=["help"]
# %%remote
help(len)

# %% tags=["redirected"]
# %%remote
from contextlib import redirect_stderr, redirect_stdout

with redirect_stdout(io.StringIO()) as kept:
    print("kept")
with redirect_stderr(sys.stdout):
    print("an error on stdout", file=sys.stderr)
print(kept.getvalue().upper())

# %% tags=["shell"]
# %%remote
# !echo from a shell; echo twice

# %% tags=["shell-stderr"]
# %%remote
# !echo to stderr 1>&2; exit 3

# %% tags=["shell-value"]
# %%remote
# lines = !printf 'a\nb\n'
print(lines, lines.s)

# %% tags=["shell-interpolated"]
# %%remote
word = "filled in"
# !echo {word} $word

# %% tags=["bash"]
# %%remote
# %%bash
# for i in 1 2 3; do echo "bash $i"; done

# %% tags=["bash-stderr"]
# %%remote
# %%bash
# echo out; echo err 1>&2

# %% tags=["python-magic"]
# %%remote
# %%python
# import sys
# print("another process", sys.argv)

# %% tags=["subprocess"]
# %%remote
import subprocess

done = subprocess.run(["echo", "a subprocess on our stdout"], check=True)
# %% tags=["fd"]
# %%remote
import os
import time

written = os.write(1, b"straight to the descriptor\n")
time.sleep(0.3)  # a local kernel reads it in a thread
# %% tags=["fd-stderr"]
# %%remote
written = os.write(2, b"straight to the other descriptor\n")
time.sleep(0.3)
# %% tags=["from-c"]
# %%remote
import ctypes
import time

libc = ctypes.CDLL(None)
count = libc.printf(b"printed by C: %d\n", 42)
flushed = libc.fflush(None)
time.sleep(0.5)  # a local kernel reads C's text in a thread, on a busy machine after the cell
# %% tags=["capture"]
# %%remote
# %%capture caught
print("not shown")
print("nor this", file=sys.stderr)
display("nor that")

# %% tags=["capture-read"]
# %%remote
print(caught.stdout, caught.stderr, len(caught.outputs))

# %% tags=["capture-show"]
# %%remote
caught.show()

# %% tags=["capture-with"]
# %%remote
from IPython.utils.capture import capture_output

with capture_output() as inner:
    print("inside")
    display({"text/plain": "a bundle"}, raw=True)
print(repr(inner.stdout), len(inner.outputs))

# %% tags=["thread"]
# %%remote
import threading

threads = [threading.Thread(target=print, args=(f"from thread {i}",)) for i in range(3)]
for each in threads:
    each.start()
    each.join()

# %% tags=["pool"]
# %%remote
from concurrent.futures import ThreadPoolExecutor

with ThreadPoolExecutor(1) as pool:
    list(pool.map(lambda i: print("pooled", i), range(3)))

# %% tags=["error-after-output"]
# %%remote
print("before the error")
print("and on stderr", file=sys.stderr)
raise ValueError("an error")

# %% tags=["async-prints"]
# %%remote
import asyncio


async def speak(word):
    await asyncio.sleep(0)
    print(word)


await asyncio.gather(speak("a"), speak("b"))
