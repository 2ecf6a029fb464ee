"""Real photographs as people keep them, when they lie beside the checkout: a slice through the whole service."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath

import pytest

from tests.service import Service

DATASETS = Path(__file__).parents[3] / "shared" / "datasets"
IMAGES_PER_FOLDER = 12


def slice_of(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """The first images of every folder under their own names -> (zip, some other images to predict)."""
    buffer = io.BytesIO()
    seen: Counter[PurePosixPath] = Counter()
    others: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(buffer, "w") as piece:
        for entry in sorted(whole.namelist()):
            if entry.endswith("/"):
                continue
            folder = PurePosixPath(entry).parent
            seen[folder] += 1
            if seen[folder] <= IMAGES_PER_FOLDER:
                piece.writestr(entry, whole.read(entry))
            elif seen[folder] == IMAGES_PER_FOLDER + 1:
                others[entry] = whole.read(entry)
    return buffer.getvalue(), others


@pytest.mark.parametrize(("name", "classes", "has_test"), [("flowers5.zip", 5, True), ("hymenoptera.zip", 2, False)])
def test_a_real_archive_goes_from_upload_to_prediction(
    service: Service, name: str, classes: int, has_test: bool
) -> None:
    if not (DATASETS / name).exists():
        pytest.skip(f"{name} is not here")
    archive, others = slice_of(DATASETS / name)
    customer = service.new_customer()
    dataset = customer.upload(archive, name)
    assert dataset["state"] == "ready", dataset
    assert len(dataset["class_names"]) == classes
    counts = list(dataset["counts"].values())
    assert all(of_class["train"] >= 1 and of_class["val"] >= 1 for of_class in counts)
    assert any(of_class.get("test") for of_class in counts) is has_test
    job = customer.finished(customer.tune(dataset, "real"))
    assert job["state"] == "succeeded", job
    assert (job["result"]["test"] is not None) is has_test
    with customer.http() as http:
        files = [("images", (entry.rpartition("/")[2], data)) for entry, data in others.items()]
        reply = http.post("/v1/predictions", data={"prompt_sets": "real", "top_k": "5"}, files=files)
    assert reply.status_code == 200, reply.text
    for image in reply.json()["data"]:
        assert sum(item["score"] for item in image["results"][0]["predictions"]) == pytest.approx(1, abs=1e-4)
