"""The cluster key: 128 bits that make devices members of one cluster.

It is printed as 32 characters in groups of four, e.g. `9k3w-...`: the key and its CRC-32 in Crockford's base 32, which leaves
out the letters that look like digits. The CRC finds every error within 32 successive bits: each wrong character, each swap of
neighbours.
"""

from __future__ import annotations

import base64
import secrets
import zlib
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mdi.cluster.home import Home
from mdi.cluster.private_files import read_private, write_private
from mdi.errors import UserError

KEY_BYTES = 16
CHECK_BYTES = 4
KEY_CHARACTERS = (KEY_BYTES + CHECK_BYTES) * 8 // 5
GROUP_CHARACTERS = 4
FINGERPRINT_BYTES = 4  # tells the clusters of a neighbourhood apart; trust never rests on it

_RFC4648 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_CROCKFORD = b"0123456789abcdefghjkmnpqrstvwxyz"
_ENCODE = bytes.maketrans(_RFC4648, _CROCKFORD)
_DECODE = bytes.maketrans(_CROCKFORD, _RFC4648)
_LOOK_ALIKE = str.maketrans("oil", "011")
_COPY_HINT = "copy it again from a device where the cluster works"


@dataclass(frozen=True, slots=True)
class ClusterKey:
    """The shared secret. Its `repr` shows the fingerprint only; `text` is the secret in the form that one types."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise UserError(f"a cluster key has {KEY_BYTES} bytes, this has {len(self.secret)}")

    def __repr__(self) -> str:
        return f"ClusterKey(fingerprint={self.fingerprint!r})"

    @classmethod
    def generate(cls) -> ClusterKey:
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def parse(cls, text: str) -> ClusterKey:
        """Read a typed key; case, spaces and dashes do not matter. Raises UserError on any typing error, before it is tried."""
        characters = "".join(text.lower().split()).replace("-", "").translate(_LOOK_ALIKE)
        if len(characters) != KEY_CHARACTERS:
            raise UserError(f"a cluster key has {KEY_CHARACTERS} characters, this has {len(characters)}", hint=_COPY_HINT)
        if strange := set(characters) - set(_CROCKFORD.decode()):
            raise UserError(f"that key has a typing error: {min(strange)!r} occurs in no key", hint=_COPY_HINT)
        data = base64.b32decode(characters.encode().translate(_DECODE))
        secret, check = data[:KEY_BYTES], data[KEY_BYTES:]
        if _check(secret) != check:
            raise UserError("that key has a typing error", hint=_COPY_HINT)
        return cls(secret)

    @property
    def text(self) -> str:
        """The secret as 32 characters in dashed groups of four; `parse` reads it."""
        characters = base64.b32encode(self.secret + _check(self.secret)).translate(_ENCODE).decode()
        return "-".join(characters[i : i + GROUP_CHARACTERS] for i in range(0, KEY_CHARACTERS, GROUP_CHARACTERS))

    @property
    def fingerprint(self) -> str:
        """8 hexadecimal characters, public: they name the cluster and tell nothing about the key."""
        return self.derive("fingerprint", FINGERPRINT_BYTES).hex()

    def derive(self, purpose: str, n_bytes: int) -> bytes:
        """Bytes for one purpose, independent of those for every other (HKDF-SHA256, RFC 5869)."""
        return HKDF(hashes.SHA256(), n_bytes, salt=None, info=f"mdi cluster v1 {purpose}".encode()).derive(self.secret)

    @classmethod
    def load(cls, home: Home) -> ClusterKey:
        """The key of this home. Raises UserError if there is none, or if others may read it."""
        data = read_private(home.key_path)
        if data is None:
            raise UserError(
                f"this device has no cluster key ({home.key_path})",
                hint="`mdi node start` makes the first one; on another device give it the key that was printed there",
            )
        try:
            return cls.parse(data.decode("ascii"))
        except (UnicodeDecodeError, UserError) as error:
            raise UserError(f"{home.key_path} holds no valid cluster key: {error}", hint=_COPY_HINT) from error

    @classmethod
    def load_or_create(cls, home: Home) -> tuple[ClusterKey, bool]:
        """The key of this home and whether it was made just now.

        A key file that was named explicitly must exist: a device that was meant to join must not found a cluster of its own.
        """
        if home.key_file is None and not home.key_path.exists():
            key = cls.generate()
            if write_private(home.key_path, f"{key.text}\n".encode(), replace=False):
                return key, True
        return cls.load(home), False

    def save(self, home: Home, *, replace: bool = False) -> None:
        """Keep the key in `home`. Raises UserError if another key is there, unless `replace`."""
        data = f"{self.text}\n".encode()
        if not write_private(home.key_path, data, replace=replace) and self.load(home) != self:
            raise UserError(
                f"this device already belongs to another cluster ({self.load(home).fingerprint})",
                hint=f"remove {home.key_path} to leave that cluster",
            )


def _check(secret: bytes) -> bytes:
    # Little-endian continues the CRC's bit order across the seam, which the promise about 32 successive bits needs.
    return zlib.crc32(secret).to_bytes(CHECK_BYTES, "little")
