"""`python -m slim` is `slim`."""

from slim.workbench.cli.main import main

if __name__ == "__main__":
    main()
