"""From one manifest and protobufs to a running, secured mesh: load, resolve, analyse, render, check, publish."""
