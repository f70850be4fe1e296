"""Question routing and four typed region heads: distance, left/right, multiple choice, counting."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
