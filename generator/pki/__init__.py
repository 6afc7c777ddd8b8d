"""The mesh's identities: a local authority, short-lived leaf certificates, and the key that signs tokens."""

from generator.pki.authority import Authority, AuthorityKey, DamagedFileError
from generator.pki.leaf import Leaf, issue_leaf
from generator.pki.nkeys import UserKey
from generator.pki.private import PrivateBytes, private_directory, write_private
from generator.pki.store import installed_leaf, publish_leaf
from generator.pki.token import TokenClaims, TokenKey

__all__ = [
    "Authority",
    "AuthorityKey",
    "DamagedFileError",
    "Leaf",
    "PrivateBytes",
    "TokenClaims",
    "TokenKey",
    "UserKey",
    "installed_leaf",
    "issue_leaf",
    "private_directory",
    "publish_leaf",
    "write_private",
]
