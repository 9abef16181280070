"""Random cells of two notebooks on one session: nothing that was appended is lost without a word.

Each append has a token of its own. Cells run through, overlap a local change, or lose their Return;
a `NameConflict` is answered one way or the other, and only what that answer gave up may be missing.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from mlcloud import errors
from tests.values.pair import Pair

NAMES = "abcd"
SHAPES = (
    "a = {'l': []}; b = {'l': []}; c = {'l': a['l']}; d = a",
    "a = {'l': []}; b = {'l': []}; c = {'l': []}; d = {'l': b['l'], 'c': c}",
)


def tokens(namespace: dict[str, Any]) -> set[str]:
    return {token for name in NAMES if name in namespace for token in namespace[name]["l"]}


class Story:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.first = Pair()
        self.second = Pair(self.first.session)
        self.first.local(self.random.choice(SHAPES))
        self.written: set[str] = set()
        self.given_up: set[str] = set()

    def token(self) -> str:
        return f"t{len(self.written) + self.random.randrange(10**9) * 1000}"

    def append(self, pair: Pair) -> None:
        name, token = self.random.choice(NAMES), self.token()
        if name in pair.here:
            pair.here[name]["l"].append(token)
            self.written.add(token)

    def cell(self, pair: Pair, kind: str) -> None:
        name, token = self.random.choice(NAMES), self.token()
        if name not in pair.here and name not in pair.there:
            return
        code = f"{name}['l'].append('{token}')"
        try:
            if kind == "through":
                pair.remote(code)
            else:
                shipment = pair.start(code)
                self.written.add(token)
                if kind == "overlapping":
                    self.append(pair)
                    pair.finish(shipment)
        except errors.NameConflict:
            self.answer(pair, code)
        self.written.add(token)

    def answer(self, pair: Pair, code: str) -> None:
        if self.random.random() < 0.5:
            before = tokens(pair.there)
            pair.remote(code, only_in=[name for name in NAMES if name in pair.here])
        else:
            before = tokens(pair.here)
            pair.remote(code, keep_remote=True)
        self.given_up |= before - tokens(pair.there) - tokens(pair.here)

    def missing(self) -> set[str]:
        spaces = (self.first.here, self.second.here, self.first.there)
        return self.written - self.given_up - set().union(*map(tokens, spaces))


@pytest.mark.parametrize("seed", range(0, 400, 40))
def test_nothing_is_lost_without_a_word(seed: int) -> None:
    for number in range(seed, seed + 40):
        story = Story(number)
        for _ in range(story.random.randint(3, 14)):
            pair = story.random.choice([story.first, story.first, story.second])
            kind = story.random.choice(["local", "through", "overlapping", "return lost"])
            if kind == "local":
                story.append(pair)
            else:
                story.cell(pair, kind)
            assert not story.missing(), number
        read = f"({','.join(NAMES)})"
        try:
            story.first.remote(read)
        except errors.NameConflict:
            story.answer(story.first, read)
            story.first.remote(read)
        assert not story.missing(), number
        for name in NAMES:
            assert story.first.here[name] == story.first.there[name], number
