"""``python -m vbon``: the same as the command ``vbon``."""

from vbon.cli.main import main

if __name__ == "__main__":
    main()
