"""`python -m generator` is the `nipmesh` command."""

from generator.cli.main import main

if __name__ == "__main__":
    main(prog_name="nipmesh")
