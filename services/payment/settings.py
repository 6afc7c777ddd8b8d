"""What the payment service is told by its environment, beyond what every service is told."""

from __future__ import annotations

from services.chassis.settings import ChassisSettings


class PaymentSettings(ChassisSettings):
    """No variables of its own: state lies in NIPMESH_DATA_DIRECTORY, other services are reached through NIPMESH_EGRESS.

    NIPMESH_FAILPOINT is for tests (see `failpoints`).
    """
