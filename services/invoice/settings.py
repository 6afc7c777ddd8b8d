"""What the invoice service is told by its environment, beside what every service is told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from services.chassis.settings import ChassisSettings


class InvoiceSettings(ChassisSettings):
    """The environment of the invoice service. Without the node's key it does not start."""

    node_key_file: Path = Field(
        validation_alias="INVOICE_NODE_KEY_FILE",
        description="32 random bytes, the Lightning node's private key, which signs the invoices; mode 0600.",
    )
