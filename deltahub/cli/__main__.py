import sys

from deltahub.cli import main

sys.exit(main())
