"""RoI features on token grids, box files, and a contrastive loss between corresponding regions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
