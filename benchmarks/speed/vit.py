"""The public ViT classes' formats with their classifier, for the comparison at equal weights."""

from common.interop.layout import Layout
from common.interop.vit import HUB, TIMM


def with_head(layout: Layout, theirs: str) -> Layout:
    """A table of ViT names whose classifier `theirs` is our `head.` instead of left out."""
    return Layout([*(row for row in layout.entries if row.ours), (theirs, "head.")], spelled=layout.spelled)


HUB_CLASSIFIER = with_head(HUB, "classifier.")
"""transformers' ViTForImageClassification."""
TIMM_CLASSIFIER = with_head(TIMM, "head.")
"""timm's VisionTransformer with a class token and learned positions."""
