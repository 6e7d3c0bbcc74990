"""`loragraft completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from loragraft.cli import console
from loragraft.cli.command import argument, command


@command(
    'eval "$(loragraft completion bash)"  # in ~/.bashrc',
    'eval "$(loragraft completion zsh)"  # in ~/.zshrc',
    "loragraft completion fish > ~/.config/fish/completions/loragraft.fish",
)
@argument(
    "shell", metavar="bash|zsh|fish", type=click.Choice(["bash", "zsh", "fish"]), help="The shell to teach."
)
def completion(shell: str) -> None:
    """Print the script that lets a shell complete commands, options and files."""
    group = click.get_current_context().find_root().command
    found = get_completion_class(shell)
    assert found is not None
    console.result(found(group, {}, "loragraft", "_LORAGRAFT_COMPLETE").source())
