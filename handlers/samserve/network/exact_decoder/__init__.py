"""This package is SAM's mask decoder, rewritten so that a prompt takes a fifth of the arithmetic.

It is the same function of the same weights as `mask_decoder.py` and `transformer.py` of
segment-anything; only float rounding differs (logits by about 1e-4). `docs/exact-decoder.md`
explains the algebra with an example.

The decoder lets T tokens (five output tokens and the prompt's) and N = 64×64 image tokens attend
to each other, in two layers. The original carries the N×256 image tokens along for every prompt and
multiplies them by ten matrices that are 256 wide. But all prompts on an image start from the same
image tokens E, and change them only by attention to T tokens: a change of rank H·T (H = 8 heads)
in N×256 numbers. So the changed image tokens are never computed:

    layer 0:  keys₁ = d₀·(E + A₀U₀)·γ₀ + β₀                  A₀: N×HT, U₀: HT×256
    layer 1:  keys₂ = d₁·(d₀·(E + A₀U₀)·γ₀ + A₁U₁ + c)·γ₁ + β₁

A is the attention of the image tokens to the T tokens (softmax over T, all heads side by side). U
is what the tokens add: their values times the head's part of the output matrix. d is LayerNorm's
1/deviation, one number per pixel; γ and β are LayerNorm's weights, and c is β₀ plus the bias of
layer 1's attention. LayerNorm's mean is zero, because E and U are centred over the channels
beforehand. Its deviation needs only the norms of the rows of a sum:

    ‖E + A₀U₀‖² = ‖E‖² + 2·A₀·(E U₀ᵀ) + A₀ (U₀U₀ᵀ) A₀ᵀ.

Attention scores, values and the first transposed convolution are all linear in the keys. So each is
a part that depends on the image only, computed once per image (`PreparedImage`), plus a part of
rank HT through A. The matrix that would make keys is applied to the T queries instead, and the one
that would make values to the T weighted sums.

The tokens' side (self-attention, MLPs, norms) is small, and runs the original modules.

On a CPU, prompts are decoded one at a time, so that the data of a prompt's pixels stays in the
processor's cache. A GPU decodes them all together, because one prompt does not occupy it.

Only sparse prompts are decoded here. A mask prompt is added to E, so prompts would share nothing.
"""

from .decoder import ExactDecoder
from .image import PreparedImage, embedded
from .masks import ExactMasks
from .upscaler import Upscaler, Upscaling

__all__ = [
    "ExactDecoder",
    "ExactMasks",
    "PreparedImage",
    "Upscaler",
    "Upscaling",
    "embedded",
]
