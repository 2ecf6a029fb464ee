"""The public Python face: what `from bpt_core import ...` gives, and that it costs nothing until it is used."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import bpt_core
from bpt_core import images, samples

METHOD_PAGE = Path(__file__).parents[2] / "docs" / "method.md"


def test_every_name_of_the_face_is_there() -> None:
    for name in bpt_core.__all__:
        assert getattr(bpt_core, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        bpt_core.nonsense  # noqa: B018


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, bpt_core; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_the_example_of_the_method_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = re.search(r"```python\n(.*?)```", METHOD_PAGE.read_text(), re.DOTALL)
    assert found is not None
    samples.write_archive(tmp_path / "flowers.zip", train=3, val=2, test=2)
    monkeypatch.chdir(tmp_path)
    pictures = [images.decode(images.encode(samples.draw(label, 1))) for label in range(3)]
    scope: dict[str, object] = {"images": pictures}
    exec(found[1].replace("epochs=10", "epochs=1"), scope)
    assert len(scope["prediction"].top(3)) == 3  # type: ignore[attr-defined]
