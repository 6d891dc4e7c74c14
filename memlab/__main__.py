"""``python -m memlab``."""

import sys

if __name__ == "__main__":
    from memlab.cli import main

    sys.exit(main())
