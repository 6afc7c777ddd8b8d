"""Nostr Wallet Connect as pure rules: what a request says, what it may do, what a budget allows, how an answer is written (NIP-47).

Specification: https://github.com/nostr-protocol/nips/blob/master/47.md
"""
