"""``python -m metarun`` does what ``metarun`` does."""

from metarun.cli import main

if __name__ == "__main__":
    main()
