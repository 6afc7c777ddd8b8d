"""What every service that meets Nostr needs: events, their JSON, ids and signatures. Pure; no I/O."""
