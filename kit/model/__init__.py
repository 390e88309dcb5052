"""What goes into a run: weights, images, preprocessing, and the model that they meet in."""

import sys

# The kit needs no torchvision, and one that does not fit torch breaks the import of transformers.
sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type] # how a module is hidden
