"""Questions to the hub, over the HTTP client, token and settings of `huggingface_hub`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import httpx2
from huggingface_hub import close_session, constants, get_session, get_token

from mdi import __version__
from mdi.errors import HubError
from mdi.hub.files import Listing, RemoteFile
from mdi.hub.reference import Reference
from mdi.hub.refusals import of_request, of_status

MAX_ANSWER_BYTES = 64 << 20  # a listing of 100,000 files takes some 30 MB
MAX_TEXT_BYTES = 64 << 20  # config.json and indexes: the largest have some 10 MB
CHUNK_BYTES = 1 << 20
NOTHING = Reference("any/model")  # what a search is about, for refusals


@dataclass(frozen=True, slots=True)
class Hub:
    """One hub or mirror. Every method raises Interruption for what may work the next time, and MdiError for what will not."""

    endpoint: str
    token: str | None = None

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator[Hub]:
        """`$HF_ENDPOINT` or huggingface.co, with the token of `$HF_TOKEN` or `hf auth login`. Connections end with the context."""
        try:
            yield cls(constants.ENDPOINT.rstrip("/"), get_token())
        finally:
            close_session()

    def listing(self, reference: Reference) -> Listing:
        """The files of a revision, with sizes and hashes, in one question."""
        revision = quote(reference.revision, safe="")
        url = f"{self.endpoint}/api/models/{reference.repository}/revision/{revision}?blobs=True"
        return Listing.of_info(reference.repository, self._json(url, reference))

    def text(self, listing: Listing, file: RemoteFile) -> bytes:
        """A small file, checked by its hash. Raises HubError for a large one."""
        if file.n_bytes > MAX_TEXT_BYTES:
            raise HubError(f"{file.path} of {listing.repository} has {file.n_bytes} bytes: that is no {file.path}")
        with self.content(listing, file, 0) as response:
            data = b"".join(_bounded(response, file.n_bytes))
        hasher = file.hasher()
        hasher.update(data)
        if hasher.hexdigest() != file.digest:
            raise HubError(f"{file.path} of {listing.repository} came with another content than the hub lists")
        return data

    @contextmanager
    def content(self, listing: Listing, file: RemoteFile, start: int, stop: int | None = None) -> Iterator[httpx2.Response]:
        """A file from byte `start` on, before `stop`; status 206, or 200 from a server that always sends all of it."""
        path = quote(file.path)
        url = f"{self.endpoint}/{listing.repository}/resolve/{listing.commit}/{path}"
        with self._get(url, Reference(listing.repository, listing.commit), start, stop) as response:
            yield response

    def search(self, text: str, limit: int) -> Sequence[Mapping[str, Any]]:
        """Models whose names contain `text`, the most downloaded first: `id`, `downloads`, `gated`, `config`, `safetensors`, `gguf`."""
        wanted = [("search", text), ("sort", "downloads"), ("direction", "-1"), ("limit", str(limit))]
        wanted += [("expand", field) for field in ("downloads", "gated", "config", "safetensors", "gguf")]
        found = self._json(f"{self.endpoint}/api/models?{urlencode(wanted)}", NOTHING)
        if not isinstance(found, list):
            raise HubError("what answered is no model hub", hint="check HF_ENDPOINT")
        return [entry for entry in found if isinstance(entry, dict) and isinstance(entry.get("id"), str)][:limit]

    def _json(self, url: str, reference: Reference) -> Any:
        with self._get(url, reference) as response:
            data = b"".join(_bounded(response, MAX_ANSWER_BYTES))
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise HubError(
                "what answered is no model hub", hint="check HF_ENDPOINT, and whether a login page is in between"
            ) from None

    @contextmanager
    def _get(self, url: str, reference: Reference, start: int = 0, stop: int | None = None) -> Iterator[httpx2.Response]:
        headers = {"User-Agent": f"mdi/{__version__}"}  # and not, as the library's own, what else is installed here
        headers["Accept-Encoding"] = "identity"  # a range of a compressed file would be a range of something else
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"  # the client drops it when it is sent on to another host
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        try:
            with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
                if not response.is_success:
                    raise of_status(response, reference, self.endpoint, token=self.token is not None)
                yield response
        except (httpx2.RequestError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise of_request(error, self.endpoint) from error


def _bounded(response: httpx2.Response, most: int) -> Iterator[bytes]:
    n_bytes = 0
    for chunk in response.iter_bytes(CHUNK_BYTES):
        n_bytes += len(chunk)
        if n_bytes > most:
            raise HubError(f"the hub sends more than {most} bytes where less is expected")
        yield chunk
