"""What the invoice service is told by its environment, beside what every service is told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from services.lightning.settings import LightningSettings


class InvoiceSettings(LightningSettings):
    """The environment of the invoice service. Without the node's key it does not start."""

    node_key_file: Path = Field(
        validation_alias="INVOICE_NODE_KEY_FILE",
        description="32 random bytes, the Lightning node's private key, which signs the invoices; mode 0600.",
    )
    two_phase_commit: bool = Field(
        default=False,
        description="Whether payments inside the mesh may prepare their settlements here (two-phase commit). Needs PostgreSQL with"
        " max_prepared_transactions above 0, and the same setting at the payment service.",
    )
