"""Multi-scale deformable attention, projectors from feature pyramids to language models, and their weights."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
