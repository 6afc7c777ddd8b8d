"""Where a resource set goes: files, processes on this machine, a compose file."""
