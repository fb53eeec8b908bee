"""The options that say how to answer, and what was typed for them as settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdi.errors import UserError

if TYPE_CHECKING:
    from mdi.engine.constraint import Constraint

TopK = Annotated[int, typer.Option(metavar="N", help="Draw from this many likeliest tokens; 0 from all.")]
TopP = Annotated[float, typer.Option(metavar="X", help="Draw from the likeliest tokens that have this probability together.")]
MinP = Annotated[float, typer.Option(metavar="X", help="Draw from tokens at least this probable relative to the likeliest.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Repeat a draw.  [default: random; --json reports it]")]
RepetitionPenalty = Annotated[
    float, typer.Option(metavar="X", help="Above 1: less of what stands in prompt or answer; 1.1 is usual, 1 is off.")
]
FrequencyPenalty = Annotated[
    float, typer.Option(metavar="X", help="Less of a token for each time that it stands in the answer, -2 to 2.")
]
PresencePenalty = Annotated[float, typer.Option(metavar="X", help="Less of a token that stands in the answer at all, -2 to 2.")]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(metavar="ID=X", help="Add X (-100 to 100) to the logit of the token with this id; may be repeated."),
]
Logprobs = Annotated[
    int | None,
    typer.Option(metavar="N", help="With --json: log-probabilities of each token and of the N likeliest in its place."),
]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End the answer before this text; may be repeated.")]
JsonSchema = Annotated[
    str | None, typer.Option(metavar="FILE|TEXT", help="Answer in JSON that obeys this schema; {} is any JSON.")
]
Regex = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Answer in text that this regular expression matches as a whole.")
]
NoSpeculation = Annotated[
    bool, typer.Option("--no-speculation", help="Do not guess tokens from the text before; the answers are the same.")
]


def parse_logit_bias(given: list[str] | None) -> tuple[tuple[int, float], ...]:
    """`15=-100` as numbers. Raises UserError."""
    pairs = []
    for text in given or ():
        token, _, bias = text.partition("=")
        try:
            pairs.append((int(token), float(bias)))
        except ValueError:
            raise UserError(
                f"--logit-bias {text[:40]!r} is not a token id and a number", hint="write it like 15=-100"
            ) from None
    return tuple(pairs)


def parse_constraint(schema: str | None, regex: str | None) -> Constraint | None:
    """What answers must match. A schema that does not begin with a brace is the name of a file. Raises UserError."""
    from mdi.engine.constraint import Constraint, Language

    if schema is not None and regex is not None:
        raise UserError("--json-schema and --regex cannot both hold", hint="leave one of them out")
    if regex is not None:
        return Constraint(Language.REGEX, regex)
    if schema is None:
        return None
    return Constraint(Language.JSON_SCHEMA, schema if schema.lstrip().startswith("{") else _read(Path(schema).expanduser()))


def _read(path: Path) -> str:
    from mdi.engine.constraint import MAX_SOURCE_CHARS

    hint = 'give a file, or the schema itself, such as \'{"type": "object"}\''
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_SOURCE_CHARS + 1)
    except OSError as error:
        raise UserError(f"the JSON schema {path} cannot be read: {error.strerror or error}", hint=hint) from error
    except ValueError as error:
        raise UserError(f"the JSON schema {path} is not text: {error}", hint=hint) from error
