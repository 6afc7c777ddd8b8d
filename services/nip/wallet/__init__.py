"""Nostr Wallet Connect as it runs: connections, requests over relays, payments within budgets, notifications (NIP-47; docs/nips/47.md).

The rules are in services.nip.domain.nip47; here is what does I/O: the store, the calls to payment and invoice, the relays.
"""
