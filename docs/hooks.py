"""Puts the help of every `vimi` command in place of `{{ COMMANDS }}`."""

import os

from typer.testing import CliRunner

from vimi_diffusers.cli import app


COMMANDS = (("generate",), ("demo",), ("memory", "build"), ("memory", "search"), ("emoji-world", "build"), ("export",))


def on_page_markdown(markdown: str, **kwargs: object) -> str:
    if "{{ COMMANDS }}" not in markdown:
        return markdown
    return markdown.replace("{{ COMMANDS }}", "\n\n".join(map(_section, COMMANDS)))


def _section(command: tuple[str, ...]) -> str:
    os.environ.update(COLUMNS="80", TERMINAL_WIDTH="80", NO_COLOR="1")
    result = CliRunner().invoke(app, [*command, "--help"], prog_name="vimi")
    if result.exit_code:
        raise RuntimeError(f"`vimi {' '.join(command)} --help` failed: {result.output}")
    help_text = "\n".join(line.rstrip() for line in result.output.strip("\n").splitlines())
    return f"## vimi {' '.join(command)}\n\n```text\n{help_text}\n```"
