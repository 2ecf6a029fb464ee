"""What a cell of an untrusted table says. Every function raises ValueError, in words for the table's owner."""

from __future__ import annotations

import json
import math
import re
import sys
import unicodedata
from collections.abc import Iterable

from bpt_core.archive import INVISIBLE
from bpt_core.pictures import Split

LABELS_OF_ONE = 10_000
LABEL_CHARACTERS = 200  # of a label or a group

SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), Split.TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), Split.VAL),
    **dict.fromkeys(("test", "testing"), Split.TEST),
}

# JSON can spell halves of characters, which no database takes.
UNSAFE = re.compile(f"{INVISIBLE.pattern}|[\ud800-\udfff]")
_SEPARATORS = re.compile(r"[|;,]")
_ITEM = re.compile(
    r"""\s*(?: '((?:[^'\\]|\\.)*)' | "((?:[^"\\]|\\.)*)" | (-?[0-9]+(?:\.[0-9]+)?) )\s*(?:,|$)""", re.VERBOSE
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.DOTALL)


def text_of(value: object) -> str:
    """Text without white space around it, NFC; numbers as they are written; "" for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        raise ValueError("neither text nor a number")
    text = unicodedata.normalize("NFC", str(value).strip())
    if UNSAFE.search(text):
        raise ValueError("control or direction characters in a cell")
    if len(text) > LABEL_CHARACTERS:
        raise ValueError(f"a label or group is over {LABEL_CHARACTERS} characters long")
    return text


def split_of(value: object) -> Split | None:
    text = text_of(value)
    if text and text.casefold() not in SPLIT_NAMES:
        raise ValueError(f'"{text}" is no split: train, val or test')
    return SPLIT_NAMES.get(text.casefold())


def labels_of(value: object, *, several: bool) -> tuple[tuple[str, ...] | None, bool]:
    """-> labels in order, None where nothing is said, and whether the cell holds a list.

    A list is one of JSON, or text that spells one as JSON or Python do. With `several`, text is split at "|", ";"
    and ",". -1 among numbers is nothing, as datasets on the Hugging Face hub have it.
    """
    if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
        value = _listed(value.strip())
    if isinstance(value, list):
        if len(value) > LABELS_OF_ONE:
            raise ValueError(f"over {LABELS_OF_ONE:,} labels in one cell")
        labels = _distinct(value)
        return (None if value and not labels else labels), True
    if several and isinstance(value, str):
        return _distinct(_SEPARATORS.split(value)) or None, False
    return _distinct([value]) or None, False


def _distinct(values: Iterable[object]) -> tuple[str, ...]:
    said = (value for value in values if isinstance(value, bool) or value != -1)
    return tuple(sorted({text_of(value) for value in said} - {""}))


def _listed(text: str) -> list[object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _python_list(text[1:-1])
    if not isinstance(value, list):
        raise ValueError("no list")
    return value


def _python_list(text: str) -> list[object]:
    """Texts and numbers between brackets. ast.literal_eval can be made to exhaust the stack, and warns of escapes."""
    items: list[object] = []
    text, at = text.strip(), 0
    while at < len(text):
        match = _ITEM.match(text, at)
        if match is None:
            raise ValueError("a label in brackets that is no list")
        one, two, number = match.groups()
        items.append(number if number is not None else _ESCAPE.sub(_unescaped, one if one is not None else two))
        at = match.end()
    return items


def _unescaped(match: re.Match[str]) -> str:
    *codes, character = match.groups()
    if character is None:
        code = int(next(code for code in codes if code is not None), 16)
        if code > sys.maxunicode:
            raise ValueError("a label in brackets with an unknown escape")
        return chr(code)
    if character not in "'\"\\":
        raise ValueError("a label in brackets with an unknown escape")
    return character
