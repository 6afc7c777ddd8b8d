"""The pure rules of Nostr identities: key strings, logins and the encryption of keys. Events: services.nostr. No I/O."""
