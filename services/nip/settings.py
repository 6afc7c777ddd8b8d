"""What the NIP service is told by its environment, beside what every service is told."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ChassisSettings
from services.nostr.relay_url import normal_relay_url

TOKEN_LIFETIME_SECONDS_MAX: Final = 86_400
"""A token cannot be called back: more than a day of a stolen one is not for this service to give."""

SIGNER_REQUESTS_MAX: Final = 100_000
"""More than a replica can sign."""


class NipSettings(ChassisSettings):
    """The environment of the NIP service. Both files and the token's terms are needed: it does not start without."""

    model_config = SettingsConfigDict(validate_by_name=True, validate_by_alias=True)

    token_key_file: Path = Field(description="PEM of the ES256 private key that signs access tokens; mode 0600.")
    token_issuer: str = Field(min_length=1, description="`iss` of the tokens: this service's SPIFFE id.")
    token_audience: str = Field(min_length=1, description="`aud` of the tokens: the mesh's name.")
    token_lifetime: int = Field(
        default=900, ge=1, le=TOKEN_LIFETIME_SECONDS_MAX, description="Seconds that a token is valid."
    )
    wallet_relays: str = Field(
        default="",
        description="Nostr relays (ws:// or wss://), separated by commas, where apps meet their wallets (NIP-47). Empty: no wallets.",
    )
    relay_ca_file: Path | None = Field(
        default=None,
        description="PEM of the CAs that the certificates of all relays (wss://) are checked with; empty: the system's.",
    )
    keystore_key_file: Path = Field(
        validation_alias="NIP_KEYSTORE_KEY_FILE",
        description="32 random bytes that encrypt the held private keys; mode 0600. Lose it and the keys are lost.",
    )
    trusted_relays: str = Field(
        default="",
        description="Relays beside this mesh whose NIP-42 challenges give access tokens: ws:// and wss:// URLs, separated by commas."
        " Whoever runs one can log in here as its clients.",
    )
    challenge_events: bool = Field(
        default=False,
        description="Whether each NIP-42 challenge that is made becomes an event. Anyone may ask for one, and each then costs a durable"
        " transaction.",
    )
    zap_relays_max: int = Field(
        default=10, ge=1, le=20, description="To so many relays of a zap request its receipt is published."
    )
    zap_private_relays: bool = Field(
        default=False,
        description="Whether zap receipts may go to relays with private and loopback addresses. Strangers name these relays: only for"
        " laptops and tests.",
    )

    @property
    def trusted_relay_urls(self) -> tuple[str, ...]:
        """The URLs in `trusted_relays`."""
        return tuple(url for part in self.trusted_relays.split(",") if (url := part.strip()))

    signer_relays: str = Field(
        default="",
        description="Relays where apps and the remote signer (NIP-46) meet when a connection names none: ws:// and wss:// URLs, separated"
        " by commas. They may be at private addresses.",
    )
    signer_auth_url: str = Field(
        default="",
        description="Where users decide on requests that they are asked for: a URL with {approval_id} in it. Empty: apps wait, and are told"
        " no URL.",
    )
    signer_private_relays: bool = Field(
        default=False,
        description="Whether relays that users and apps name may be at addresses that only this host or network reaches.",
    )
    signer_requests_per_second: int = Field(
        default=20, ge=1, le=SIGNER_REQUESTS_MAX, description="Requests a second that each app may make, for long."
    )

    @field_validator("signer_relays")
    @classmethod
    def _are_relays(cls, value: str) -> str:
        """Write the URLs in one way. A relay's URL is checked here, so that a wrong one stops the start."""
        return ",".join(normal_relay_url(url) for part in value.split(",") if (url := part.strip()))

    @field_validator("signer_auth_url")
    @classmethod
    def _has_a_place(cls, value: str) -> str:
        """Refuse a URL that would be the same for all requests."""
        if value and ("{approval_id}" not in value or not value.startswith(("https://", "http://"))):
            raise ValueError("write https://… with {approval_id} in it")
        return value

    @property
    def signer_relay_urls(self) -> tuple[str, ...]:
        """The URLs in `signer_relays`."""
        return tuple(url for url in self.signer_relays.split(",") if url)
