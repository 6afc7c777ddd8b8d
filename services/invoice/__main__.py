"""`python -m services.invoice`: run one replica of the invoice service."""

from __future__ import annotations

from services.chassis.server import run
from services.invoice.service import SERVICE

if __name__ == "__main__":
    run(SERVICE)
