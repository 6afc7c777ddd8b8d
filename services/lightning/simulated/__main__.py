"""The world outside of a simulated node, by hand.

    python -m services.lightning.simulated DIRECTORY pay PAYMENT_REQUEST [AMOUNT_MSAT]
    python -m services.lightning.simulated DIRECTORY rule PAYMENT_HASH pay|fail|hang
    python -m services.lightning.simulated DIRECTORY invoice AMOUNT_MSAT [DESCRIPTION]

DIRECTORY is the data directory of the service whose node it is: the invoice service's to pay its invoices, the payment service's to
rule over its payments and to make invoices that it can pay.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from services.lightning.node import NodeRefusedError, NodeUnavailableError
from services.lightning.payment_request import Bolt11Error
from services.lightning.simulated import Behaviour, Outsider, Profile, profile_of
from services.lightning.simulated.node_file import FILE_NAME


def _profile(text: str) -> Profile:
    try:
        return profile_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="services.lightning.simulated", description="The world outside of a simulated node."
    )
    parser.add_argument("directory", type=Path, help="data directory of the service whose node it is")
    parser.add_argument(
        "--simulation", type=_profile, default=Profile(), help="the service's NIPMESH_LIGHTNING_SIMULATION"
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    pay = verbs.add_parser("pay", help="pay an invoice of the node")
    pay.add_argument("payment_request")
    pay.add_argument("amount_msat", type=int, nargs="?", help="when the invoice leaves the amount open")
    rule = verbs.add_parser("rule", help="order what becomes of a payment of the node")
    rule.add_argument("payment_hash")
    rule.add_argument("behaviour", type=Behaviour, choices=list(Behaviour))
    invoice = verbs.add_parser("invoice", help="make an invoice that the node can pay")
    invoice.add_argument("amount_msat", type=int)
    invoice.add_argument("description", nargs="?", default="")
    return parser


async def _run(arguments: argparse.Namespace) -> str:
    outsider = await Outsider.open(arguments.directory, arguments.simulation)
    try:
        if arguments.verb == "pay":
            received = await outsider.pay(arguments.payment_request, arguments.amount_msat)
            return f"{received.state.value} {received.amount_msat}"
        if arguments.verb == "rule":
            await outsider.rule(arguments.payment_hash, arguments.behaviour)
            return str(arguments.behaviour)
        return outsider.invoice(arguments.amount_msat, arguments.description)
    finally:
        await outsider.close()


def main() -> int:
    """Do one thing and print what came of it; 1 when it was refused."""
    parser = _parser()
    arguments = parser.parse_args()
    if not (arguments.directory / FILE_NAME).exists():
        parser.error(f"there is no {FILE_NAME} in {arguments.directory}: no simulated node has run there")
    try:
        print(asyncio.run(_run(arguments)))  # it is a command
    except (NodeRefusedError, NodeUnavailableError, Bolt11Error) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
