"""Boxes, masks, ragged regions, token grids, pooling, splicing and the region feature extractor."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
