"""The `nipmesh` command: one module per subcommand, loaded only when it is used."""
