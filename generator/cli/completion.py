"""`nipmesh completion SHELL`: the script by which a shell completes commands, options and the manifest's names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from generator.cli.main import main

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "nipmesh"
VARIABLE = "_NIPMESH_COMPLETE"
"""By which the script asks; click reads it."""


HELP = """Print the script that lets a shell complete commands, options, and the services of the manifest.

\b
bash: eval "$(nipmesh completion bash)"             in ~/.bashrc
zsh:  eval "$(nipmesh completion zsh)"              in ~/.zshrc, after compinit
fish: nipmesh completion fish > ~/.config/fish/completions/nipmesh.fish"""
"""`\\b` keeps click from wrapping the lines."""


@click.command(help=HELP, no_args_is_help=True)
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print click's script for this shell."""
    kind = get_completion_class(shell)
    assert kind is not None, shell
    click.echo(kind(main, {}, PROGRAM, VARIABLE).source())
