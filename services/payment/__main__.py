"""`python -m services.payment`."""

from services.chassis.server import run
from services.payment.service import SERVICE

if __name__ == "__main__":
    run(SERVICE)
