"""The Lightning node behind a port: `port` says what a node must do, `simulated` is the one that this version has."""
