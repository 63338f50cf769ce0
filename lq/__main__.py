"""`python -m lq` is the same command as `lq`."""

from lq.cli import main

if __name__ == "__main__":
    main()
