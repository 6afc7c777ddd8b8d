"""`python -m generator.introspection --listen unix:PATH --descriptor-set FILE --methods FILE --admin SOCKET`."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from generator.introspection.server import Settings, serve


def main() -> None:
    """Parse the arguments and serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m generator.introspection", description=__doc__)
    parser.add_argument("--listen", required=True, help="gRPC listen target, e.g. unix:/run/x/introspection.sock")
    parser.add_argument("--descriptor-set", type=Path, required=True, help="the mesh's FileDescriptorSet")
    parser.add_argument("--methods", type=Path, required=True, help="JSON: exposed services, methods and clusters")
    parser.add_argument("--admin", type=Path, required=True, help="the gateway Envoy's admin socket")
    parser.add_argument("--reflection", action="store_true", help="answer reflection too, not only health")
    words = parser.parse_args()
    asyncio.run(
        serve(
            Settings(
                listen=words.listen,
                descriptor_set=words.descriptor_set,
                exposure=words.methods,
                admin=words.admin,
                reflection=words.reflection,
            )
        )
    )


if __name__ == "__main__":
    main()
