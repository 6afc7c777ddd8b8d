"""The simulated node that is paid: `ReceivingNode`, and people outside who pay its invoices."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Final, Self

from services.chassis.secret import SecretBytes
from services.lightning.bolt11 import encode
from services.lightning.node import InvoiceOrder, NodeRefusedError, Received, ReceivedState
from services.lightning.node_key import NodeKey
from services.lightning.payment_request import REGTEST, Bolt11Error, PaymentRequest
from services.lightning.simulated import attempts
from services.lightning.simulated import received as invoices
from services.lightning.simulated.node_file import NodeFile, now_ms
from services.lightning.simulated.outside import Outsider
from services.lightning.simulated.profile import Profile
from services.storage.places import Place
from services.storage.sql import Connection

MIN_FINAL_CLTV_EXPIRY_DELTA: Final = 80
"""Blocks left to the payee by the last hop: lnd's default. Said in every invoice, as BOLT11 recommends."""
REMEMBERED_MAX: Final = 10_000
"""Invoices whose text is kept in memory: adding one again finds it, and `lookup` knows it as open."""
LOOK_S_MAX: Final = 1.0
"""A subscriber looks at least this often for deadlines that passed."""
LOOK_PAUSE_S: Final = 0.05
"""A subscriber waits so long after a commit before it looks: under load there are hundreds in a second, and few of them are about money."""
SINCE_MS: Final = 1_000
"""Changes that were being committed when somebody subscribed were stamped at most this long before."""
MS_PER_SECOND: Final = 1_000


class SimulatedReceivingNode:
    """Signs invoices with its key and holds what outsiders pay; make it with `open`. The replicas share the file.

    To add an invoice writes nothing: its payment secret follows from the key and the payment hash, and the signature is proof enough
    that the node made it. So an invoice that another process added is unknown to `lookup` until something happens to it.
    """

    currency: Final = REGTEST
    simulated: Final = True

    def __init__(self, file: NodeFile, key: NodeKey) -> None:
        """For `open` only."""
        self._file = file
        self._key = key
        self._secret = SecretBytes(hashlib.sha256(key.sign(b"payment secrets of the simulated node")).digest())
        self._texts: OrderedDict[str, str] = OrderedDict()

    @classmethod
    async def open(
        cls, where: Place, key: NodeKey, profile: Profile | None = None, clock: Callable[[], int] = now_ms
    ) -> Self:
        """Open the network's file in a service's data directory, or its schema."""
        file = await NodeFile.open(where, profile or Profile(), clock)
        await file.database.write(lambda connection: invoices.register(connection, key.public_key))
        return cls(file, key)

    async def add_invoice(self, order: InvoiceOrder) -> str:
        """Sign. No disk is touched."""
        self._file.answering()
        text = self._texts.get(order.payment_hash)
        if text is None:
            text = self._signed(order)
            self._texts[order.payment_hash] = text
            if len(self._texts) > REMEMBERED_MAX:
                self._texts.popitem(last=False)
        return text

    def _signed(self, order: InvoiceOrder) -> str:
        secret = hmac.digest(self._secret.reveal(), order.payment_hash.encode(), hashlib.sha256)
        request = PaymentRequest(
            currency=REGTEST,
            payee_pubkey=self._key.public_key,
            payment_hash=order.payment_hash,
            payment_secret=secret.hex(),
            amount_msat=order.amount_msat,
            create_time_s=order.create_time_ms // MS_PER_SECOND,
            description=None if order.description_hash else order.description,
            description_hash=order.description_hash or None,
            expiry_s=order.expiry_s,
            min_final_cltv_expiry_delta=MIN_FINAL_CLTV_EXPIRY_DELTA,
        )
        try:
            return encode(request, self._key)
        except Bolt11Error as error:
            raise NodeRefusedError("invoice", str(error)) from error

    async def settle(self, preimage: bytes) -> None:
        """Take what is held."""
        await self._file.write(lambda connection, now: attempts.settle(connection, self._file.world, preimage, now))

    async def cancel(self, payment_hash: str) -> None:
        """Give back what is held; written down also when nothing is, since nothing may come later."""
        await self._file.write(lambda connection, now: attempts.cancel(connection, payment_hash, now))

    async def lookup(self, payment_hash: str) -> Received | None:
        """What became of it."""
        await self._advance()
        found = await self._file.read(lambda connection: invoices.find_received(connection, payment_hash))
        if found is None and payment_hash in self._texts:
            return Received(payment_hash=payment_hash, state=ReceivedState.OPEN)
        return found

    async def pay_from_outside(self, payment_request: str, amount_msat: int | None = None) -> Received:
        """Somebody outside pays, see `Outsider.pay`."""
        return await Outsider(self._file).pay(payment_request, amount_msat)

    def subscribe(self) -> AsyncIterator[Received]:
        """Every change of any process from now on."""
        return self._changes(self._file.clock() - SINCE_MS)

    async def _changes(self, since_ms: int) -> AsyncIterator[Received]:
        changes = self._file.database.changes()
        sequence = await self._file.read(lambda connection: invoices.first_sequence_since(connection, since_ms))
        while True:
            after = sequence
            moment_ms, found = await self._file.read(lambda connection: _look(connection, after))  # noqa: B023
            for number, received in found:
                yield received
                sequence = number
            if moment_ms is not None and moment_ms <= self._file.clock():
                await self._file.write(self._advanced)
            elif not found:
                await changes.wait(timeout_s=self._pause_s(moment_ms))
                await asyncio.sleep(LOOK_PAUSE_S)

    def _pause_s(self, moment_ms: int | None) -> float:
        """Until something happens by itself, but not too long."""
        if moment_ms is None:
            return LOOK_S_MAX
        return min(LOOK_S_MAX, max(0.0, (moment_ms - self._file.clock()) / MS_PER_SECOND))

    async def _advance(self) -> int | None:
        """Do what is due; the time of what is next."""
        moment_ms = await self._file.read(attempts.next_moment_ms)
        if moment_ms is None or moment_ms > self._file.clock():
            return moment_ms
        return await self._file.write(self._advanced)

    def _advanced(self, connection: Connection, now: int) -> int | None:
        attempts.advance(connection, self._file.world, now)
        return attempts.next_moment_ms(connection)

    async def close(self) -> None:
        """Close the file."""
        await self._file.close()


def _look(connection: Connection, sequence: int) -> tuple[int | None, list[tuple[int, Received]]]:
    """When something happens next by itself, and the changes after `sequence`."""
    return attempts.next_moment_ms(connection), invoices.changes_after(connection, sequence)
