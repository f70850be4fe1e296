"""Video frames, token layouts, frame-causal masks and the autoregressive reconstruction loss."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
