"""`python -m mvla_daemon` is the `mvla-daemon` command."""

import sys

from mvla_daemon.cli import main

sys.exit(main())
