"""`python -m jepaworld` is the command `jepaworld`."""

from jepaworld.cli import main

if __name__ == "__main__":
    main()
