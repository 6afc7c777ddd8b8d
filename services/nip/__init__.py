"""The NIP service: access tokens for Nostr keys, and signing with keys that it holds for their owners."""
