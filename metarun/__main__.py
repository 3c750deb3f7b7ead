"""``python -m metarun`` does what ``metarun`` does."""

from metarun.commands.main import main

if __name__ == "__main__":
    main()
