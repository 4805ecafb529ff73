"""`python -m blockplane`: the command line."""

from blockplane.cli import main

if __name__ == "__main__":
    main()
