"""What a checkpoint's folder is called. Imports no torch: names are looked at before that is loaded."""

import re

CHECKPOINT_NAME = re.compile(r"step-\d{8,}")  # a user's step-00001000-best is theirs
