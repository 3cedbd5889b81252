import pytest

from vimi_diffusers.cli import main


@pytest.fixture
def run_vimi(capsys):
    """Runs `vimi` with the given arguments; its exit code and what it printed."""

    def run(*arguments):
        with pytest.raises(SystemExit) as exit:
            main([*map(str, arguments)])
        return exit.value.code or 0, capsys.readouterr()

    return run
