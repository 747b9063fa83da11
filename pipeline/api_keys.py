"""API keys: making the secret, storing its hash, recognising it.

Rules: pure; randomness is passed in. The secret is 32 random bytes behind a prefix that tells live from test, shown
once and stored nowhere. Its plain SHA-256 is stored: with 256 bits of entropy there is nothing to guess, so a slow
hash would only slow down every request.
"""

import base64
import hashlib
import hmac
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from pipeline.catalog import Catalog, Key, Mode

SECRET_BYTES: Final = 32
_SECRET_CHARS_MAX: Final = 256  # longer ones are not even hashed


class Principal(msgspec.Struct, frozen=True):
    """Who a request speaks for, by its key. `hint`: the secret's last characters, safe to log."""

    account: str
    scopes: frozenset[str]
    name: str
    hint: str


class KeyRefused(msgspec.Struct, frozen=True):
    """The secret opens nothing: no such key, or it was revoked."""

    reason: Literal["unknown", "revoked"]


def make_secret(mode: Mode, random_bytes: Callable[[int], bytes]) -> str:
    """A fresh secret such as `tally_live_…`."""
    random = random_bytes(SECRET_BYTES)
    if len(random) != SECRET_BYTES:
        raise ValueError(f"the source of randomness gave {len(random)} bytes, not {SECRET_BYTES}")
    return f"tally_{mode}_{base64.urlsafe_b64encode(random).rstrip(b'=').decode()}"


def secret_hash(secret: str) -> str:
    """What is stored of a secret: its SHA-256 in hex."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def principal_of(key: Key) -> Principal:
    """Who speaks with this key."""
    return Principal(key.account, frozenset(key.scopes), key.name, key.hint)


def recognise(catalog: Catalog, secret: str) -> Key | KeyRefused:
    """The key that a secret opens, as the catalog knows it now."""
    if not 1 <= len(secret) <= _SECRET_CHARS_MAX:
        return KeyRefused("unknown")
    hashed = secret_hash(secret)
    key = catalog.key(hashed)
    if key is None or not hmac.compare_digest(key.hash, hashed):
        return KeyRefused("unknown")
    return key if key.revoked_us is None else KeyRefused("revoked")
