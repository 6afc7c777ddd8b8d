"""The mesh for machines on which systemd runs its processes: units, folders, users, and the Envoys' files."""

from generator.outputs.systemd.hosts import Hosts, load_hosts
from generator.outputs.systemd.layout import Layout, Programs
from generator.outputs.systemd.tree import PublicKeys, machine_of, public_keys, tree, write_tree
from generator.outputs.systemd.units import Machine

__all__ = [
    "Hosts",
    "Layout",
    "Machine",
    "Programs",
    "PublicKeys",
    "load_hosts",
    "machine_of",
    "public_keys",
    "tree",
    "write_tree",
]
