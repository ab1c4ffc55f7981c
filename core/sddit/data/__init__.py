"""Parts that data sets share: order, scaling, previews, declared shapes, safe archives and the latent-cache format."""

from sddit.data.scaling import seen_moments, seen_std

__all__ = ["seen_moments", "seen_std"]
