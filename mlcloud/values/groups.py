"""Which names share an object, so that they travel together and stay aliases.

Two names belong together when both reach one mutable object (or one array memory); so do the names
that each of them belongs with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping


def reached(keys: Iterable[str], leads_to: Callable[[str], Iterable[str]]) -> set[str]:
    """The keys, and all that these lead to."""
    found: set[str] = set()
    waiting = list(keys)
    while waiting:
        key = waiting.pop()
        if key not in found:
            found.add(key)
            waiting.extend(leads_to(key))
    return found


def groups(names: Iterable[str], ids_by_name: Mapping[str, set[int]]) -> list[frozenset[str]]:
    """The names as disjoint groups, in the order of each group's first name.

    A name without ids is a group of its own.
    """
    ordered = list(dict.fromkeys(names))
    parent = {name: name for name in ordered}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    # The larger ones last: what is done with each id in turn is done with the smaller ones' alone.
    by_size = sorted(ordered, key=lambda name: len(ids_by_name.get(name, ())))
    first_with: dict[int, str] = {}
    for name in by_size:
        ids = ids_by_name.get(name, set())
        for other in set(map(first_with.__getitem__, ids & first_with.keys())):
            parent[root(name)] = root(other)
        if name is not by_size[-1]:
            first_with.update(dict.fromkeys(ids, name))

    members: dict[str, list[str]] = {}
    for name in ordered:
        members.setdefault(root(name), []).append(name)
    return [frozenset(group) for group in members.values()]
