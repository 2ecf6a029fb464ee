"""Which image a table means when it names a file: people write such names in many ways.

A reference is looked up, and never opened: relative to the folder of its table, relative to the folders which that
one lies in, then anywhere: by as many of its last components as an image has, or by its base name without extension.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property

from bpt_core.archive import fold

_FOLDERS = 16  # folders above a table, and components of a reference, that are tried


class Places:
    """The paths of all images, to be found by references."""

    def __init__(self, paths: Collection[str]) -> None:
        self._exact: defaultdict[str, list[str]] = defaultdict(list)
        for path in paths:
            self._exact[fold(path)].append(path)

    def find(self, references: Collection[str], folder: str) -> dict[str, str | None]:
        """Reference -> path for those of one table in `folder`; None where several images could be meant.

        A table most of whose files lie where it says is not searched for elsewhere: its other files are missing,
        and one of the same name in another folder is another one. Elsewhere an image is found by one reference only.
        """
        keys = {reference: _parts(reference) for reference in references}
        above = _parts(folder)
        found: dict[str, str | None] = {}
        for reference, parts in keys.items():
            for place in _relative(parts, above):
                if place in self._exact:
                    found[reference] = _only(self._exact[place])
                    break
        if 2 * len(found) <= len(keys):
            found |= self._elsewhere({reference: keys[reference] for reference in keys.keys() - found}, found)
        return found

    def _elsewhere(self, keys: dict[str, list[str]], taken: dict[str, str | None]) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        meant_by: defaultdict[str, set[str]] = defaultdict(set)
        for reference, parts in keys.items():
            named = [part for part in parts if part != ".."][-_FOLDERS:]
            endings = (self._ending(named[start:]) for start in range(len(named)))
            paths = next(filter(None, endings), None) or self._stems.get(parts[-1] if parts else "", [])
            if paths:
                found[reference] = _only(paths)
        for reference, path in found.items():
            if path is not None:
                meant_by[path].add("/".join(keys[reference]))
        crowded = {path for path, names in meant_by.items() if len(names) > 1} | set(taken.values())
        return {reference: None if path in crowded else path for reference, path in found.items()}

    def _ending(self, parts: Sequence[str]) -> list[str]:
        """Paths that end in these components, two at most."""
        start = _backwards(parts)
        at = bisect_left(self._reversed, (start, ""))
        return [path for key, path in self._reversed[at : at + 2] if key.startswith(start)]

    @cached_property
    def _reversed(self) -> list[tuple[str, str]]:
        """Paths with their components turned round, in order: those of one ending stand together."""
        return sorted((_backwards(key.split("/")), path) for key, paths in self._exact.items() for path in paths)

    @cached_property
    def _stems(self) -> dict[str, list[str]]:
        """Base name without extension -> paths."""
        stems: defaultdict[str, list[str]] = defaultdict(list)
        for key, paths in self._exact.items():
            stems[key.rsplit("/", 1)[-1].rpartition(".")[0]] += paths
        return stems


def _only(paths: Sequence[str]) -> str | None:
    return paths[0] if len(paths) == 1 else None


def _parts(reference: str) -> list[str]:
    return [part for part in fold(reference).replace("\\", "/").split("/") if part not in {"", "."}]


def _relative(parts: Sequence[str], folder: list[str]) -> Iterator[str]:
    """Where the reference leads from `folder`, from those above it and from the root."""
    for depth in (*range(len(folder), max(0, len(folder) - _FOLDERS), -1), 0):
        place = folder[:depth]
        for part in parts:
            if part == ".." and not place:
                break
            place = place[:-1] if part == ".." else [*place, part]
        else:
            yield "/".join(place)


def _backwards(parts: Sequence[str]) -> str:
    return "".join(f"{part}/" for part in reversed(parts))
