from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any

import httpx2
import pytest

from mdi.errors import HubError, MdiError, ModelError
from mdi.hub.files import Listing
from mdi.hub.pace import Interruption
from mdi.hub.reference import Reference
from mdi.hub.refusals import asked_pause_s, of_request, of_status

REFERENCE, ENDPOINT = Reference("org/name"), "https://hub.example"


@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize("status", [*range(300, 310), *range(400, 432), 451, *range(500, 512), 599])
@pytest.mark.parametrize("code", [None, "GatedRepo", "RepoNotFound", "RevisionNotFound", "EntryNotFound", "Nonsense"])
def test_every_status_is_a_sentence_with_a_hint_or_another_try(status: int, code: str | None, token: bool) -> None:
    response = httpx2.Response(status, headers={} if code is None else {"X-Error-Code": code})
    meant = of_status(response, REFERENCE, ENDPOINT, token=token)
    assert isinstance(meant, MdiError | Interruption)
    assert str(meant)
    assert meant.hint
    assert isinstance(meant, Interruption) == (
        status in (408, 429, 500, 502, 503, 504) and code in (None, "RepoNotFound", "Nonsense")
    )


def test_a_disabled_repository_is_not_called_missing() -> None:
    response = httpx2.Response(403, headers={"X-Error-Message": "Access to this resource is disabled."})
    assert "disabled" in str(of_status(response, REFERENCE, ENDPOINT, token=False))


@pytest.mark.parametrize(
    "kind", [kind for kind in vars(httpx2).values() if isinstance(kind, type) and issubclass(kind, httpx2.RequestError)]
)
def test_every_failure_of_the_client_has_a_meaning(kind: type[httpx2.RequestError]) -> None:
    meant = of_request(kind("so"), ENDPOINT)
    assert "hub.example" in str(meant)
    assert meant.hint


@pytest.mark.parametrize(
    ("headers", "pause_s"),
    [
        ({}, None),
        ({"retry-after": "30"}, 30.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Mon, 01 Jan 2001 00:00:00 GMT"}, 0.0),
        ({"ratelimit": '"api";r=0;t=55'}, 55.0),
        ({"ratelimit": '"api";r=10;t=55'}, None),
        ({"retry-after": "5", "ratelimit": '"api";r=0;t=55'}, 5.0),
    ],
)
def test_pauses_are_read_in_all_forms(headers: dict[str, str], pause_s: float | None) -> None:
    assert asked_pause_s(headers) == pause_s


def test_a_date_to_wait_for_is_read() -> None:
    pause_s = asked_pause_s({"retry-after": formatdate(time.time() + 100, usegmt=True)})
    assert pause_s is not None
    assert 95 < pause_s < 101


GOOD = {"rfilename": "a.safetensors", "size": 1, "lfs": {"sha256": "0" * 64, "size": 9}, "blobId": "0" * 40}


def test_a_listing_takes_size_and_hash_of_large_files_from_lfs() -> None:
    listing = Listing.of_info("org/name", {"sha": "a" * 40, "siblings": [GOOD]})
    assert (listing.files["a.safetensors"].n_bytes, listing.files["a.safetensors"].digest) == (9, "0" * 64)


@pytest.mark.parametrize(
    "info",
    [
        None, [], "x", {}, {"sha": "main", "siblings": []}, {"sha": "a" * 40}, {"sha": "a" * 40, "siblings": {}},
        *({"sha": "a" * 40, "siblings": [GOOD | change]} for change in (
            {"rfilename": None}, {"rfilename": "../x"}, {"rfilename": "/etc/x"}, {"rfilename": "a\\b"}, {"rfilename": ""},
            {"lfs": {"sha256": "0" * 64, "size": -1}}, {"lfs": {"sha256": "0" * 64, "size": True}},
            {"lfs": {"sha256": "../" * 21 + "x", "size": 9}},
            {"lfs": {}}, {"lfs": "x"}, {"lfs": None, "blobId": None}, {"lfs": None, "blobId": "../x"}, {"lfs": None, "size": None},
            {"lfs": None, "size": 1 << 60},
        )),
    ],
)  # fmt: skip
def test_a_listing_that_no_hub_gives_is_refused(info: Any) -> None:
    with pytest.raises(HubError):
        Listing.of_info("org/name", info)


def test_the_revision_is_named_when_it_is_missing() -> None:
    meant = of_status(httpx2.Response(404, headers={"X-Error-Code": "RevisionNotFound"}), REFERENCE, ENDPOINT, token=False)
    assert isinstance(meant, ModelError)
    assert "'main'" in str(meant)
