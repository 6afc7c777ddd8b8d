"""People outside: they pay invoices of the simulated node, make invoices to pay, and decide what becomes of payments that hang.

For tests and demonstrations, from any process that can open the file: `python -m services.lightning.simulated --help`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from services.lightning.bolt11 import decode
from services.lightning.node import NodeRefusedError, Received
from services.lightning.payment_request import Bolt11Error
from services.lightning.simulated import attempts
from services.lightning.simulated.node_file import NodeFile, now_ms
from services.lightning.simulated.payee import automatic_invoice
from services.lightning.simulated.profile import Profile
from services.lightning.simulated.words import Behaviour
from services.storage.places import Place


class Outsider:
    """Somebody at the other end of the network of a file."""

    def __init__(self, file: NodeFile) -> None:
        """Over an open file; or make it with `open`."""
        self._file = file

    @classmethod
    async def open(cls, where: Place, profile: Profile | None = None, clock: Callable[[], int] = now_ms) -> Self:
        """Open the file in the data directory of a service, or the schema."""
        return cls(await NodeFile.open(where, profile or Profile(), clock))

    async def pay(self, payment_request: str, amount_msat: int | None = None) -> Received:
        """Pay an invoice of the simulated node, or find that it was paid from outside before; durable.

        What is paid is held (ACCEPTED) until the node settles or cancels it, or its deadline passes. `amount_msat` is needed when
        the invoice leaves it open. Raises NodeRefusedError.
        """
        try:
            request = decode(payment_request)
        except Bolt11Error as error:
            raise NodeRefusedError("request", str(error)) from error
        paid_msat = request.amount_msat if amount_msat is None else amount_msat
        if paid_msat is None:
            raise NodeRefusedError("amount", "the invoice leaves the amount to the payer: name one")
        return await self._file.write(
            lambda connection, now: attempts.pay_from_outside(connection, self._file.world, request, paid_msat, now)
        )

    async def rule(self, payment_hash: str, behaviour: Behaviour) -> None:
        """Order what becomes of a payment of the simulated node: of the one on its way, and of those that begin later."""
        await self._file.write(
            lambda connection, now: attempts.rule(connection, self._file.world, payment_hash, behaviour, now)
        )

    def invoice(self, amount_msat: int | None, description: str = "") -> str:
        """A payment request of somebody who takes the money at once and reveals the preimage. Raises Bolt11Error."""
        return automatic_invoice(self._file.world, amount_msat, self._file.clock(), description=description)

    async def close(self) -> None:
        """Close the file."""
        await self._file.close()
