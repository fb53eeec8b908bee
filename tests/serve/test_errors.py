from __future__ import annotations

import pytest

from mdi import errors
from mdi.errors import InternalError, MdiError
from mdi.serve.errors import ApiError, Shape, api_error


def kinds(error: type[MdiError]) -> list[type[MdiError]]:
    return [error, *(kind for child in error.__subclasses__() for kind in kinds(child))]


OURS = [kind for kind in kinds(MdiError) if kind.__module__ == errors.__name__ and kind is not MdiError]


@pytest.mark.parametrize("kind", OURS)
def test_every_error_has_a_status_of_its_side(kind: type[MdiError]) -> None:
    told = api_error(kind("what is wrong"))
    if issubclass(kind, InternalError):
        assert told.status == 500
        assert "what is wrong" not in str(told)
    elif kind.exit_code == 2:
        assert told.status == 400
    else:
        assert (told.status, told.retry_after_s is not None) == (503, True)


def test_what_is_none_of_ours_tells_nothing_of_itself() -> None:
    told = api_error(ValueError("/home/anna/secret"))
    assert told.status == 500
    assert "anna" not in str(told)


def test_each_api_has_its_own_shape() -> None:
    error = ApiError(429, "later", code="rate_limit_exceeded", retry_after_s=3)
    assert Shape.of("/v1/chat/completions").body(error) == {
        "error": {"message": "later", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}
    }
    assert Shape.of("/v1/messages").body(error) == {"type": "error", "error": {"type": "rate_limit_error", "message": "later"}}
    assert Shape.of("/api/chat").body(error) == {"error": "later"}
    assert error.headers == [("retry-after", "3")]
