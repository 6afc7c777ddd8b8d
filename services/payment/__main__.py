"""`python -m services.payment` serves; `python -m services.payment verify` checks a database."""

import sys

from services.chassis.server import run
from services.payment.service import SERVICE
from services.payment.verification.command import main

if __name__ == "__main__":
    if sys.argv[1:2] == ["verify"]:
        raise SystemExit(main(sys.argv[2:]))
    run(SERVICE)
