"""The README's table of settings, made from Settings: `python -m tests.settings_table` writes it."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from bpt_store.settings import Settings

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- settings: made by `python -m tests.settings_table` -->\n", "<!-- /settings -->\n"


def table() -> str:
    lines = ["| variable | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default
        if default is PydanticUndefined:
            shown = "needed"
        elif default in (None, "") or isinstance(default, SecretStr):
            shown = "none"
        elif name == "work_directory":
            shown = "`bpt-work` in the system's temporary folder"
        else:
            shown = f"`{default}`"
        lines.append(f"| `BPT_{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(lines) + "\n"


def with_table(readme: str) -> str:
    before, rest = readme.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
