"""Datasets: upload, change, wait until they are validated, look at them and at what is in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from bpt_client.archives import content_of
from bpt_client.dataset_models import Item
from bpt_client.errors import DatasetFailed, InputError, WaitedTooLong
from bpt_client.models import Dataset, DatasetContents, DatasetVersion, Json, parse
from bpt_client.transport import Transport, deadline, decode, json_object, segment
from bpt_client.uploads import OnSent, is_small, send_in_parts, send_whole

_DATASETS = "/v1/datasets"
_COLUMNS = ("file", "label", "split", "group")
_POLL_SECONDS = 0.5

Awaited = TypeVar("Awaited", bound=DatasetContents)


class Datasets:
    """`version` is a number, by default the newest version that is ready."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def upload(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        task: str | None = None,
        first_frame: bool | None = None,
        short_side: int | None = None,
        bad_images: float | None = None,
        columns: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        on_sent: OnSent | None = None,
    ) -> Dataset:
        """Send a zip, tar (also .gz, .zst), Parquet file or a folder; named after it by default.

        Called again after it was broken off, it sends only what the service has not got yet.

        `task` is auto, single-label, multi-label or unlabelled: images in any folders, to be predicted and not to be
        tuned on. With `first_frame` animations count as their first picture. Pictures are stored with a shorter side
        of at most `short_side` pixels. A share of `bad_images` (0 to 1) may be left out as unreadable. `columns` says
        how the columns file, label, split and group of tables are called where they do not have the usual names.

        The dataset is not ready yet: see `wait`. InputError for a path with nothing to send.
        """
        path = Path(path).absolute()
        content = content_of(path)
        about = {
            "name": name or content.name,
            **_options(task, first_frame, short_side, bad_images, columns),
        }
        if is_small(content) and not metadata:  # which does not fit into a URL
            return parse(Dataset, send_whole(self._transport, _DATASETS, about, content, on_sent))
        if metadata:
            about["metadata"] = dict(metadata)
        return parse(Dataset, send_in_parts(self._transport, about, content, on_sent))

    def import_from(
        self,
        url: str,
        *,
        name: str | None = None,
        task: str | None = None,
        first_frame: bool | None = None,
        short_side: int | None = None,
        bad_images: float | None = None,
        columns: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Dataset:
        """Have the service fetch a dataset from object storage, "s3://bucket/prefix/" for example.

        Only from where it is allowed to (ApiError `import_url_forbidden`); options as for `upload`. By default it is
        named as the URL ends.
        """
        name = name or url.rstrip("/").rpartition("/")[2]
        if not name:
            raise InputError(f"{url!r} has no name in it: give one")
        about = {"name": name, "url": url, **_options(task, first_frame, short_side, bad_images, columns)}
        return self._transport.send(Dataset, _DATASETS, {**about, "metadata": dict(metadata) if metadata else None})

    def add(
        self, dataset_id: str, path: str | Path, *, base: int | None = None, on_sent: OnSent | None = None
    ) -> DatasetVersion:
        """Send more images: the next version has them beside those of the newest one. Resumable as `upload` is.

        Where `base` is given and is no longer the newest version: Conflict `version_moved`.
        """
        content = content_of(Path(path).absolute())
        expected = {} if base is None else {"base": base}
        if is_small(content):
            sent = send_whole(self._transport, f"{_path(dataset_id)}/versions", expected, content, on_sent)
        else:
            sent = send_in_parts(self._transport, {"dataset": dataset_id, **expected}, content, on_sent)
        return parse(DatasetVersion, sent)

    def change(
        self,
        dataset_id: str,
        *,
        relabel: Mapping[str, str | Sequence[str]] | None = None,
        remove: Sequence[str] = (),
        base: int | None = None,
    ) -> DatasetVersion:
        """The next version, with other labels for some items ({item id: labels}) and without others (their ids).

        Conflict `version_moved` as for `add`. InputError where nothing is changed.
        """
        if not relabel and not remove:
            raise InputError("there is nothing to change")
        body = {
            "base": base,
            "relabel": [
                {"item": item, "labels": [labels] if isinstance(labels, str) else [*labels]}
                for item, labels in (relabel or {}).items()
            ],
            "remove": [*remove],
        }
        wanted = {key: value for key, value in body.items() if value != []}
        return self._transport.send(DatasetVersion, f"{_path(dataset_id)}/versions", wanted)

    def describe(
        self, dataset_id: str, *, name: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> Dataset:
        """None leaves a part as it is; metadata are replaced as a whole."""
        body = {"name": name, "metadata": None if metadata is None else dict(metadata)}
        return parse(Dataset, decode(self._transport.once("PATCH", _path(dataset_id), json=body)))

    def list(self) -> Iterator[Dataset]:
        return self._transport.pages(Dataset, _DATASETS)

    def get(self, dataset_id: str) -> Dataset:
        return self._transport.fetch(Dataset, _path(dataset_id))

    def versions(self, dataset_id: str) -> Iterator[DatasetVersion]:
        """Newest first, those that failed or are being made among them."""
        return self._transport.pages(DatasetVersion, f"{_path(dataset_id)}/versions")

    def version(self, dataset_id: str, number: int) -> DatasetVersion:
        return self._transport.fetch(DatasetVersion, f"{_path(dataset_id)}/versions/{number}")

    def items(
        self,
        dataset_id: str,
        *,
        version: int | None = None,
        split: str | None = None,
        label: str | None = None,
        finding: str | None = None,
    ) -> Iterator[Item]:
        """Its images: of one split, with a label, concerned by a finding (its code, "blurred" for example)."""
        wanted = {"version": version, "split": split, "label": label, "finding": finding}
        return self._transport.pages(Item, f"{_path(dataset_id)}/items", wanted)

    def thumbnail(self, dataset_id: str, item: str, *, version: int | None = None) -> bytes:
        """A small JPEG."""
        return self._picture(dataset_id, item, "thumbnail", version)

    def image(self, dataset_id: str, item: str, *, version: int | None = None) -> bytes:
        """WebP or PNG, as it is stored: upright, without metadata, of bounded size."""
        return self._picture(dataset_id, item, "image", version)

    def report(self, dataset_id: str, *, version: int | None = None) -> Json:
        """What validation found; `parse(DatasetReport, ...)` has what people read."""
        path = _path(dataset_id) if version is None else f"{_path(dataset_id)}/versions/{version}"
        return json_object(decode(self._transport.get(f"{path}/report")))

    def delete(self, dataset_id: str) -> None:
        """With all its versions."""
        self._transport.once("DELETE", _path(dataset_id))

    def wait(self, dataset_id: str, *, timeout: float | None = None) -> Dataset:
        """The dataset once it is ready. DatasetFailed; WaitedTooLong after `timeout` seconds."""
        return _validated(lambda: self.get(dataset_id), f"dataset {dataset_id}", timeout)

    def wait_version(self, dataset_id: str, number: int, *, timeout: float | None = None) -> DatasetVersion:
        """One version once it is ready; DatasetFailed and WaitedTooLong as for `wait`."""
        return _validated(lambda: self.version(dataset_id, number), f"dataset {dataset_id}:{number}", timeout)

    def _picture(self, dataset_id: str, item: str, kind: str, version: int | None) -> bytes:
        params = None if version is None else {"version": version}
        return self._transport.get(f"{_path(dataset_id)}/items/{segment(item)}/{kind}", params).content


def _path(dataset_id: str) -> str:
    return f"{_DATASETS}/{segment(dataset_id)}"


def _validated(get: Callable[[], Awaited], what: str, timeout: float | None) -> Awaited:
    end = deadline(timeout)
    while True:
        found = get()
        if found.is_ready:
            return found
        if found.is_failed:
            raise DatasetFailed(found, what)
        if time.monotonic() >= end:
            raise WaitedTooLong(f"{what} is still {found.state} after {timeout} s")
        time.sleep(_POLL_SECONDS)


def _options(
    task: str | None,
    first_frame: bool | None,
    short_side: int | None,
    bad_images: float | None,
    columns: Mapping[str, str] | None,
) -> Json:
    """As the service calls them; what is not given is left to it. InputError for a column that means nothing."""
    columns = columns or {}
    if unknown := sorted(set(columns) - set(_COLUMNS)):
        raise InputError(f"columns are to be given for {', '.join(_COLUMNS)}, not for {', '.join(unknown)}")
    given = {"task": task, "first_frame": first_frame, "short_side": short_side, "bad_images": bad_images}
    given |= {f"{meaning}_column": name for meaning, name in columns.items()}
    return {key: value for key, value in given.items() if value is not None}
