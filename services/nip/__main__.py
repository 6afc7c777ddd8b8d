"""`python -m services.nip`: logins, keys and signatures. Its environment: services.nip.settings."""

from services.chassis.server import run
from services.nip.service import NIP_SERVICE

if __name__ == "__main__":
    run(NIP_SERVICE)
