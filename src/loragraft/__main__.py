"""`python -m loragraft` is the command line."""

from loragraft.cli import main

if __name__ == "__main__":
    main()
