"""What the hub's refusals mean to the user: whose fault, and what to do. Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import httpx2

from mdi.errors import HubError, MdiError, ModelError, UserError
from mdi.hub.pace import Interruption
from mdi.hub.reference import Reference

LOGIN = "set HF_TOKEN=hf_..., or run: hf auth login"
_SPENT = re.compile(r"\br=0\s*;\s*t=(\d{1,9})\b")  # RateLimit: "api";r=0;t=55 (draft-ietf-httpapi-ratelimit-headers)
NO_WAY = "check this device's network; HF_ENDPOINT names a mirror; --offline uses only what is here"


def of_status(response: httpx2.Response, reference: Reference, endpoint: str, *, token: bool) -> MdiError | Interruption:
    """What an error status means, by the hub's X-Error-Code where it sends one. `token`: whether the request had one."""
    status, code = response.status_code, response.headers.get("X-Error-Code")
    said = (response.headers.get("X-Error-Message") or "").lower()
    page, repository = f"{endpoint}/{reference.repository}", reference.repository
    match code:
        case "GatedRepo" if token:
            return ModelError(
                f"{repository} is gated, and your account has no access to it (yet)",
                hint=f"open {page} in a browser, logged in to the account of your token, accept the licence, and start again "
                "when access is granted; a fine-grained token also needs the right to read gated repositories",
            )
        case "GatedRepo":
            return ModelError(
                f"{repository} is gated: its owner gives it to accounts that have accepted its licence",
                hint=f"open {page} and accept it, make a token at {endpoint}/settings/tokens, then {LOGIN}",
            )
        case "RevisionNotFound":
            return ModelError(
                f"{repository} has no revision {reference.revision!r}",
                hint=f"{page}/tree/main lists its branches and tags; without @REVISION the newest is taken",
            )
        case "EntryNotFound":
            return HubError(f"{repository} no longer has a file that it listed", hint="start again")
    if "disabled" in said:
        return ModelError(f"the hub has disabled {repository}", hint="choose another model")
    if status == 401 and token and "credentials" in said:
        return UserError("the hub does not know your token", hint=f"make one at {endpoint}/settings/tokens, then {LOGIN}")
    if status in (401, 404):  # of what it does not show, the hub does not say whether it exists
        private = "your token has no access to it" if token else f"it is private ({LOGIN})"
        return ModelError(
            f"{endpoint} has no model {repository}, or {private}",
            hint=f"check the spelling; mdi models search {repository.rpartition('/')[2]} shows what there is",
        )
    return _of_number(response, repository, page)


def _of_number(response: httpx2.Response, repository: str, page: str) -> MdiError | Interruption:
    match response.status_code:
        case 403:
            return ModelError(f"the hub does not give {repository} to you", hint=f"open {page}; {LOGIN}")
        case 429:
            return Interruption("the hub asks for fewer requests", asked_pause_s(response.headers), f"wait a while; {LOGIN}")
        case 408 | 500 | 502 | 503 | 504 as status:
            return Interruption(f"the hub answers {status}", asked_pause_s(response.headers), "try again later")
        case status:
            return HubError(f"the hub answers {status} to a request for {repository}", hint=NO_WAY)


def asked_pause_s(headers: Mapping[str, str]) -> float | None:
    """From Retry-After (seconds or a date, RFC 9110) or the hub's RateLimit; None without either."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        spent = _SPENT.search(headers.get("ratelimit", ""))
        return None if spent is None else float(spent[1])


def of_request(error: Exception, endpoint: str) -> MdiError | Interruption:
    """What a request that got no answer means."""
    host = endpoint.partition("://")[2] or endpoint
    match error:
        case httpx2.UnsupportedProtocol() | httpx2.InvalidURL():
            return UserError(
                f"{endpoint!r:.200} is no address of a model hub", hint="HF_ENDPOINT looks like https://huggingface.co"
            )
        case httpx2.TimeoutException():
            return Interruption(f"{host} does not answer", hint=NO_WAY)
        case httpx2.ConnectError():
            return Interruption(f"{host} cannot be reached ({_reason(error)})", hint=NO_WAY)
        case httpx2.TransportError():
            return Interruption(f"the connection to {host} broke ({_reason(error)})", hint=NO_WAY)
    return HubError(f"{host} answers what cannot be read: {_reason(error)}", hint=NO_WAY)


def _reason(error: Exception) -> str:
    return str(error)[:200] or type(error).__name__
