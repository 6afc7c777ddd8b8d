"""lnd's gRPC API, as far as it is used: the `.proto` files are ours, names and numbers are lnd's; the stubs are made at install."""
