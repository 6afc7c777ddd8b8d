"""Runs a mesh as local processes: each replica an application and its sidecar, one gateway, one supervisor."""
