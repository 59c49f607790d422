"""`aether`: finds the command, runs it, and says in one line what went wrong.

Commands are imported when they are used: `aether --help` imports none of them.
"""

import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from aether_core import __version__
from aether_core.cli.show import Output
from aether_core.errors import AetherError, ConfigError, PluginError

if TYPE_CHECKING:
    from aether_core.client import Client
    from aether_core.contexts import Context
    from aether_core.plugins import Hooks
    from aether_core.settings import Settings

#: Command: where it is, and its line in `aether --help`.
COMMANDS: dict[str, tuple[str, str]] = {
    "cluster": ("aether_core.cli.cluster:cluster", "Make, look at and remove clusters."),
    "artifact": ("aether_core.cli.artifact:artifact", "Upload and list what slices are made of."),
    "deploy": ("aether_core.cli.deploy:deploy", "Deploy a blueprint; see how it goes."),
    "rollback": ("aether_core.cli.rollout:rollback", "Go back to the version before."),
    "explain": ("aether_core.cli.rollout:explain", "Say why a deployment moved as it did."),
    "undeploy": ("aether_core.cli.deploy:undeploy", "Remove a blueprint and its slices."),
    "scale": ("aether_core.cli.slices:scale", "Set a slice's number of instances."),
    "slices": ("aether_core.cli.slices:slices", "List the slices."),
    "instances": ("aether_core.cli.slices:instances", "List the instances."),
    "logs": ("aether_core.cli.slices:logs", "Show what instances write."),
    "node": ("aether_core.cli.node:node", "Look at nodes; be one."),
    "token": ("aether_core.cli.token:token", "Say who may talk to the cluster."),
    "context": ("aether_core.cli.context:context", "Choose between the clusters you know."),
    "config": ("aether_core.cli.config:config", "Check configuration files."),
    "plugin": ("aether_core.cli.plugin:plugin", "See what is installed."),
}


@dataclass
class Session:
    """What one command line has at hand."""

    out: Output = field(default_factory=Output)
    context_name: str | None = None

    @cached_property
    def settings(self) -> "Settings":
        from aether_core.settings import load_settings  # noqa: PLC0415  Not for --help.

        return load_settings()

    @cached_property
    def hooks(self) -> "Hooks":
        from aether_core.plugins import Hooks  # noqa: PLC0415

        return Hooks(own_commands=COMMANDS)

    @property
    def context(self) -> "Context":
        from aether_core.contexts import load_context  # noqa: PLC0415

        return load_context(self.settings, self.context_name)

    def client(self) -> "Client":
        """Return a connection to the chosen cluster, to be used as an async context."""
        from aether_core.client import Client  # noqa: PLC0415

        return Client(self.context)


pass_session = click.make_pass_decorator(Session, ensure=True)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--json`."""

    def switch(context: click.Context, _: click.Parameter, value: bool) -> None:
        context.ensure_object(Session).out.is_json = value

    return click.option(
        "--json", is_flag=True, expose_value=False, callback=switch, help="Speak JSON."
    )(command)


class Commands(click.Group):
    """The commands of the table, and those of plugins."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(context.ensure_object(Session).hooks.commands)]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        from aether_core.installed import import_attribute  # noqa: PLC0415

        found = COMMANDS.get(name)
        path = found[0] if found else context.ensure_object(Session).hooks.commands.get(name)
        if path is None:
            return None
        command = import_attribute(path)
        if not isinstance(command, click.Command):
            raise PluginError(f"'{path}' is no command of click")
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, text) for name, (_, text) in COMMANDS.items()]
        hooks = context.ensure_object(Session).hooks
        rows += [(name, f"From a plugin: {hooks.commands[name]}.") for name in hooks.commands]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        wrong = [p for p in context.ensure_object(Session).hooks.plugins if p.why]
        if wrong:
            names = ", ".join(f"{plugin.name} ({plugin.state})" for plugin in wrong)
            formatter.write_paragraph()
            formatter.write_text(f"Without {names}: see aether plugin list.")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="aether")
@click.option("--context", "context_name", help="The cluster to talk to, by its name.")
@click.pass_context
def aether(context: click.Context, context_name: str | None) -> None:
    """One TOML file makes a highly available cluster and runs your services on it."""
    context.ensure_object(Session).context_name = context_name


def main() -> None:
    """Run the command line; exit with the code that the outcome has."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Return the exit code of one command line."""
    session = Session()
    try:
        code = aether.main(arguments, prog_name="aether", standalone_mode=False, obj=session)
        return code if isinstance(code, int) else 0
    except click.exceptions.Abort:
        click.echo("aborted", err=True)
        return 130
    except KeyboardInterrupt:
        return 130
    except click.ClickException as error:
        error.show()
        # What is wrong may stand before --json.
        session.out.is_json |= "--json" in arguments
        _tell_machines(session.out, AetherError(error.format_message()), error.exit_code, "Usage")
        return error.exit_code
    except AetherError as error:
        _explain(error)
        _tell_machines(session.out, error, error.exit_code, type(error).__name__)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # Python would complain about the closed pipe once more on exit.
        return 0
    except Exception as error:  # noqa: BLE001  The last door: what nobody expected is our bug.
        traceback.print_exc()
        click.echo("this is a bug in aether: please report it with the lines above", err=True)
        _tell_machines(session.out, AetherError(repr(error)), AetherError.exit_code, "Bug")
        return AetherError.exit_code


def _tell_machines(out: Output, error: AetherError, exit_code: int, type_name: str) -> None:
    """Say on standard output, which is all that a script reads, that and why it went wrong."""
    if not out.is_json:
        return
    problems = error.problems if isinstance(error, ConfigError) else ()
    out.line(
        "error",
        {
            "type": type_name,
            "message": error.message,
            "hint": error.hint,
            "problems": [vars(problem) for problem in problems],
            "exit_code": exit_code,
        },
    )


def _explain(error: AetherError) -> None:
    problems = error.problems if isinstance(error, ConfigError) else ()
    if problems:
        for problem in problems:
            hint = f" ({problem.hint})" if problem.hint else ""
            click.echo(f"error: {problem}{hint}", err=True)
    else:
        click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"try: {error.hint}", err=True)


if __name__ == "__main__":
    main()
