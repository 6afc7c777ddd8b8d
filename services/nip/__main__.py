"""`python -m services.nip` serves (its environment: services.nip.settings); `python -m services.nip rotate-key` rotates the master key."""

import sys

from services.chassis.server import run
from services.nip.rotation import main
from services.nip.service import NIP_SERVICE

if __name__ == "__main__":
    if sys.argv[1:2] == ["rotate-key"]:
        raise SystemExit(main(sys.argv[2:]))
    run(NIP_SERVICE)
