"""API keys: making the secret, storing its hash, recognising it.

Rules: pure; randomness is passed in. The secret is 32 random bytes behind a prefix that tells live from test, shown
once and stored nowhere. Its plain SHA-256 is stored: with 256 bits of entropy there is nothing to guess, so a slow
hash would only slow down every request. The key is found by that hash in a dictionary: how long that takes tells of
the hash at most, of which nobody can make up a prefix without the secret; the hash that is found is then compared in
constant time.
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
    """Who a request speaks for, by its key. `hint`: the secret's last characters, safe to log. `key`: its
    id. `events_per_s`, `burst`: see Key."""

    account: str
    scopes: frozenset[str]
    name: str
    hint: str
    key: str = ""
    events_per_s: int | None = None
    burst: int | None = None


class KeyRefused(msgspec.Struct, frozen=True):
    """The secret opens nothing: no such key, or it was revoked, or rotated and its time is over."""

    reason: Literal["unknown", "revoked", "expired"]


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
    scopes = frozenset(key.scopes)
    return Principal(key.account, scopes, key.name, key.hint, key.hash, key.events_per_s, key.burst)


def recognise(catalog: Catalog, secret: str, now_us: int) -> Key | KeyRefused:
    """The key that a secret opens at this instant, as far as the catalog has been read."""
    if not 1 <= len(secret) <= _SECRET_CHARS_MAX:
        return KeyRefused("unknown")
    hashed = secret_hash(secret)
    key = catalog.key(hashed)
    if key is None or not hmac.compare_digest(key.hash, hashed):
        return KeyRefused("unknown")
    if key.revoked_us is not None:
        return KeyRefused("revoked")
    return key if key.expires_us is None or now_us < key.expires_us else KeyRefused("expired")
