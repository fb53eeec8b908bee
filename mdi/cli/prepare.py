"""`mdi node prepare`: the step of an installer and of a system's boot that gives the daemon its key and settings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mdi.cli.terminal import note, say
from mdi.errors import UserError

STDIN = Path("-")
MAX_TYPED_CHARACTERS = 200  # a key has 39


def prepare(
    into: Annotated[Path, typer.Option(metavar="DIRECTORY", help="Where the daemon's key and settings are kept.")],
    boot_file: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="A mdi.toml on a boot partition, with a key beside it.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A cluster's key to join; - reads it from stdin.")
    ] = None,
    group: Annotated[str | None, typer.Option(metavar="GROUP", help="The group that may read the key.")] = None,
) -> None:
    """Give this system's daemon its key: from a boot partition, from a file, or else that of a new cluster."""
    from mdi.cluster.key import ClusterKey
    from mdi.node.prepare import found_cluster, keep_key, read_key, take_over

    if boot_file is not None and key_file is not None:
        raise UserError("--from and --key-file exclude each other", hint="a boot file names its key itself")
    group_id = None if group is None else _group_id(group)
    if boot_file is not None:
        came = take_over(boot_file, into, group_id)
        note(f"took {boot_file} over" + (", and the key beside it" if came else ""))
    elif key_file is not None:
        key = ClusterKey.parse(sys.stdin.read(MAX_TYPED_CHARACTERS)) if key_file == STDIN else read_key(key_file)
        keep_key(key, into, group_id)
        note(f"this device belongs to cluster {key.fingerprint}")
    elif (made := found_cluster(into, group_id)) is not None:
        say(f"This is a new cluster. On each other device type:\n\n    mdi node start --join {made.text}\n")
        say("The key is a secret: whoever has it belongs to the cluster.")
    else:
        note("this device keeps the cluster key that it has")


def _group_id(name: str) -> int:
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise UserError(f"this device has no group {name!r}", hint=f"groupadd --system {name}") from None
