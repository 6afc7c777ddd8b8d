"""NIP-46 without any I/O: messages, URIs, permissions, and the states of connections and requests."""
