"""Bearer tokens: `aet_<id>_<secret>`, of which the store keeps only the secret's hash."""

import hashlib
import hmac
import secrets
from datetime import datetime

from aether_core.model import Role, TokenRecord

PREFIX = "aet"
SECRET_BYTES = 32


def new_token(
    name: str,
    role: Role,
    *,
    now: datetime,
    expires_at: datetime | None = None,
    identity: str | None = None,
) -> tuple[str, TokenRecord]:
    """Return the token's text, to be shown once, and its record; `identity`: of one it replaces."""
    identity = identity or secrets.token_hex(4)
    text = f"{PREFIX}_{identity}_{secrets.token_urlsafe(SECRET_BYTES)}"
    return text, record_of(text, name, role, now=now, expires_at=expires_at)


def record_of(
    text: str, name: str, role: Role, *, now: datetime, expires_at: datetime | None = None
) -> TokenRecord:
    """Return the record of a token that exists already."""
    identity, secret = split_token(text)
    return TokenRecord(identity, name, role, _hash(secret), now, expires_at)


def split_token(text: str) -> tuple[str, str]:
    """Return a token's id and secret; what is no token gets an id that nobody has."""
    prefix, _, rest = text.partition("_")
    identity, _, secret = rest.partition("_")
    return (identity, secret) if prefix == PREFIX else ("", "")


def is_secret_of(record: TokenRecord | None, secret: str) -> bool:
    """Return whether the secret is the record's; takes as long when there is no record."""
    expected = record.sha256 if record else "0" * 64
    return hmac.compare_digest(_hash(secret), expected) and record is not None


def _hash(secret: str) -> str:
    # 256 random bits need no slow hash: there is nothing to guess.
    return hashlib.sha256(secret.encode()).hexdigest()
