"""What the payment service is told by its environment, beyond what every service is told."""

from __future__ import annotations

from pydantic import Field

from services.lightning.settings import LightningSettings


class PaymentSettings(LightningSettings):
    """Which Lightning node pays, and how payments inside the mesh are committed.

    State lies in NIPMESH_DATA_DIRECTORY, others are reached through NIPMESH_EGRESS.

    NIPMESH_FAILPOINT is for tests (see `failpoints`).
    """

    two_phase_commit: bool = Field(
        default=False,
        description="Whether payments inside the mesh settle their invoices by two-phase commit. Needs PostgreSQL, and the same setting"
        " at the invoice service.",
    )
