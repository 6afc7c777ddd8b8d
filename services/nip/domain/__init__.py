"""The pure rules of Nostr identities: events, signatures, key strings, logins and the encryption of keys. No I/O."""
