"""What the NIP service is told by its environment, beside what every service is told."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ChassisSettings

TOKEN_LIFETIME_SECONDS_MAX: Final = 86_400
"""A token cannot be called back: more than a day of a stolen one is not for this service to give."""


class NipSettings(ChassisSettings):
    """The environment of the NIP service. Both files and the token's terms are needed: it does not start without."""

    model_config = SettingsConfigDict(validate_by_name=True, validate_by_alias=True)

    token_key_file: Path = Field(description="PEM of the ES256 private key that signs access tokens; mode 0600.")
    token_issuer: str = Field(min_length=1, description="`iss` of the tokens: this service's SPIFFE id.")
    token_audience: str = Field(min_length=1, description="`aud` of the tokens: the mesh's name.")
    token_lifetime: int = Field(
        default=900, ge=1, le=TOKEN_LIFETIME_SECONDS_MAX, description="Seconds that a token is valid."
    )
    keystore_key_file: Path = Field(
        validation_alias="NIP_KEYSTORE_KEY_FILE",
        description="32 random bytes that encrypt the held private keys; mode 0600. Lose it and the keys are lost.",
    )
