"""Segmentation by language, regions and image pairs: PSALM with the deformable projector."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
