"""``python -m lacuna_nipype``: the same as the ``lacuna-nipype`` command."""

from lacuna_nipype.cli.main import run_from_command_line

if __name__ == "__main__":
    run_from_command_line()
