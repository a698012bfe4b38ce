"""`python -m unetfast` is the same as the command `unetfast`."""

from unetfast.cli import main

if __name__ == "__main__":
    main()
