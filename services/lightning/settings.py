"""Which Lightning node a service uses, by its environment, and the node itself behind the port."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from services.chassis.errors import StartError
from services.chassis.secret import SecretFileError, load_secret
from services.chassis.settings import ChassisSettings
from services.lightning import lnd
from services.lightning.lnd import LndSettings
from services.lightning.node import NodeUnavailableError, PayingNode, ReceivingNode
from services.lightning.node_key import SECRET_BYTES, NodeKey, NodeKeyError
from services.lightning.simulated import SimulatedPayingNode, SimulatedReceivingNode, profile_of
from services.lightning.simulated.node_file import FILE_NAME
from services.storage.places import Place, PostgresPlace, place_of

NodeT = TypeVar("NodeT")


class LightningSettings(ChassisSettings):
    """The environment of a service that has a Lightning node."""

    lightning_node: Literal["simulated", "lnd"] = Field(
        default="simulated", description="Which Lightning node: simulated (no bitcoin moves) or lnd."
    )
    lightning_simulation: str = Field(
        default="",
        description="How the simulated network behaves, for example seed=7,failures=0.1,hangs=0.01,delay_ms=50; empty: no faults.",
    )

    lightning_address: str = Field(default="", description="host:port of lnd's gRPC; needed for lnd.")
    lightning_tls_certificate_file: Path | None = Field(
        default=None, description="lnd's own certificate (tls.cert), the only one that is trusted; needed for lnd."
    )
    lightning_macaroon_file: Path | None = Field(
        default=None, description="What this service may do at lnd, binary, mode 0600; needed for lnd."
    )

    @field_validator("lightning_simulation")
    @classmethod
    def _simulation_is_a_profile(cls, value: str) -> str:
        """Refuse what is no profile."""
        profile_of(value)
        return value

    @model_validator(mode="after")
    def _lnd_is_described(self) -> Self:
        """Refuse lnd without what it takes to reach it."""
        if self.lightning_node == "lnd" and not (
            self.lightning_address and self.lightning_tls_certificate_file and self.lightning_macaroon_file
        ):
            raise ValueError(
                "lnd needs NIPMESH_LIGHTNING_ADDRESS, NIPMESH_LIGHTNING_TLS_CERTIFICATE_FILE and NIPMESH_LIGHTNING_MACAROON_FILE"
            )
        return self

    @property
    def lnd(self) -> LndSettings:
        """How lnd is reached, when it is the node."""
        assert self.lightning_tls_certificate_file is not None
        assert self.lightning_macaroon_file is not None
        return LndSettings(
            address=self.lightning_address,
            tls_cert=self.lightning_tls_certificate_file,
            macaroon=self.lightning_macaroon_file,
        )


async def open_receiving_node(settings: LightningSettings, key_file: Path) -> ReceivingNode:
    """The node that is paid. `key_file` holds the simulated node's private key; lnd has its own. Raises StartError."""
    if settings.lightning_node == "lnd":
        return await _reached(lnd.open_receiving_node(settings.lnd))
    profile = profile_of(settings.lightning_simulation)
    return await SimulatedReceivingNode.open(simulated_place(settings), load_node_key(key_file), profile)


async def open_paying_node(settings: LightningSettings) -> PayingNode:
    """The node that pays. Raises StartError."""
    if settings.lightning_node == "lnd":
        return await _reached(lnd.open_paying_node(settings.lnd))
    return await SimulatedPayingNode.open(simulated_place(settings), profile_of(settings.lightning_simulation))


def simulated_place(settings: LightningSettings) -> Place:
    """Where a simulated node keeps its state: in the data directory, or in a schema that no other service's node shares."""
    place = place_of(settings, FILE_NAME)
    if not isinstance(place, PostgresPlace):
        return settings.data_directory
    return replace(place, schema=re.sub(r"[^a-z0-9]+", "_", f"{place.schema}_{settings.service or 'node'}"))


async def _reached(opening: Awaitable[NodeT]) -> NodeT:
    """A node that does not answer at the start is a mistake in the settings until it is shown to be something else."""
    try:
        return await opening
    except NodeUnavailableError as error:
        raise StartError(f"lnd does not answer: {error}") from error


def load_node_key(path: Path) -> NodeKey:
    """The node's key from its secret file. Raises SecretFileError."""
    try:
        return NodeKey(load_secret(path, length=SECRET_BYTES))
    except NodeKeyError as error:
        raise SecretFileError(f"the secret file {path} is no key: {error}") from error
