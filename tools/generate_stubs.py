"""Turns proto/mdi.proto into mdi/wire/mdi_pb2.py, mdi_pb2.pyi and mdi_pb2_grpc.py (`make proto`).

With --check nothing is written: exit status 1 when the committed stubs describe another mdi.proto. Only that counts,
as the text around it changes with every release of grpcio-tools.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto" / "mdi.proto"
STUBS = ROOT / "mdi" / "wire"
NAMES = ("mdi_pb2.py", "mdi_pb2.pyi", "mdi_pb2_grpc.py")
HEADER = "# generated; run make proto\n"


def generate(proto: Path) -> dict[str, str]:
    """The text of each stub. Raises SystemExit when protoc refuses the file; it prints why."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
        if protoc.main(["protoc", f"--proto_path={proto.parent}", *outputs, str(proto)]):
            raise SystemExit(f"{proto} is not a valid .proto file.")
        texts = {name: (Path(folder) / name).read_text() for name in NAMES}
    # protoc imports its modules as if they lay at the top of the path.
    texts["mdi_pb2_grpc.py"] = texts["mdi_pb2_grpc.py"].replace("\nimport mdi_pb2 as", "\nfrom . import mdi_pb2 as")
    return {name: HEADER + text for name, text in texts.items()}


def is_stale(texts: dict[str, str], stubs: Path) -> bool:
    """Whether `stubs` lacks one of the files, or describes other messages and services than `texts`."""
    if not all((stubs / name).is_file() for name in NAMES):
        return True
    return _descriptor(texts["mdi_pb2.py"]) != _descriptor((stubs / "mdi_pb2.py").read_text())


def _descriptor(text: str) -> str:
    return next((line for line in text.splitlines() if "AddSerializedFile(" in line), "")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Generate the protobuf stubs.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the committed stubs are stale")
    check = parser.parse_args(arguments).check
    texts = generate(PROTO)
    if not check:
        for name, text in texts.items():
            (STUBS / name).write_text(text)
    elif is_stale(texts, STUBS):
        print("The stubs in mdi/wire do not match proto/mdi.proto: run `make proto`.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
