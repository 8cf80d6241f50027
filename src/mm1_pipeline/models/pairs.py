"""The images of a packed batch with the texts they belong to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mm1_pipeline.models.losses import IGNORED


class ImageTexts(NamedTuple):
    """M pairs of an image and the text of its document; K texts, L tokens in all of them."""

    images: Tensor
    """int64[M], places among the batch's images; an image without a text is left out."""
    texts: Tensor
    """int64[M], place of each image's text among the K."""
    sequences: Tensor
    """int64[M], the row of the batch that each pair is from."""
    input_ids: Tensor
    """int64[L], all texts end to end, without BOS and image tokens, with EOS."""
    position_ids: Tensor
    """int64[L], from 0 in each text."""
    cu_seqlens: Tensor
    """int64[K + 1], borders of the texts."""


def pair_images_with_texts(
    input_ids: Tensor, labels: Tensor, cu_seqlens: Tensor, num_images: int, image_token_id: int
) -> ImageTexts:
    """Finds each image's text: all that is to be predicted in its document.

    A document of several images gives each of them the whole text. A document whose text is
    nothing but its end gives no pair.

    Args:
        input_ids: int64[B, T].
        labels: int64[B, T], -100 where nothing is predicted.
        cu_seqlens: int[D + 1], borders of the documents over the B * T positions.
        num_images: images of the batch, N.
        image_token_id: the placeholder for image tokens.
    """
    length = input_ids.shape[1]
    ids, borders = input_ids.flatten(), cu_seqlens.long()
    document_of = torch.arange(len(borders) - 1, device=ids.device).repeat_interleave(
        borders.diff(), output_size=len(ids)
    )
    placeholders = (ids == image_token_id).nonzero().squeeze(1)
    first_places = placeholders[:: len(placeholders) // num_images if num_images else 1]
    # A position is text if the one before it has to predict it.
    is_text = torch.cat([labels.new_zeros(1, dtype=torch.bool), labels.flatten()[:-1] != IGNORED])
    num_documents = len(borders) - 1
    has_image = torch.zeros(num_documents, dtype=torch.bool, device=ids.device)
    has_image[document_of[first_places]] = True
    lengths = torch.zeros(num_documents, dtype=torch.int64, device=ids.device)
    lengths.index_add_(0, document_of[is_text], torch.ones_like(ids[is_text]))
    is_paired = has_image & (lengths >= 2)

    images = is_paired[document_of[first_places]].nonzero().squeeze(1)
    text_of_document = is_paired.cumsum(0) - 1
    chosen = (is_text & is_paired[document_of]).nonzero().squeeze(1)
    text_lengths = lengths[is_paired]
    cu_texts = torch.nn.functional.pad(text_lengths.cumsum(0), (1, 0))
    starts = cu_texts[:-1].repeat_interleave(text_lengths, output_size=len(chosen))
    return ImageTexts(
        images=images,
        texts=text_of_document[document_of[first_places[images]]],
        sequences=first_places[images] // length,
        input_ids=ids[chosen],
        position_ids=torch.arange(len(chosen), device=ids.device) - starts,
        cu_seqlens=cu_texts,
    )


def text_keys(pairs: ImageTexts) -> Tensor:
    """A number for each text that equal texts share, and others almost surely do not.

    Args:
        pairs: N images with K texts, and which text is whose.

    Returns:
        int64[K].
    """
    places = torch.arange(len(pairs.cu_seqlens) - 1, device=pairs.input_ids.device)
    text_of = places.repeat_interleave(pairs.cu_seqlens.diff(), output_size=len(pairs.input_ids))
    # Integer sums wrap around but do not round, so their order does not matter.
    values = mix(pairs.input_ids + (pairs.position_ids << 32))
    return torch.zeros_like(places).index_add_(0, text_of, values)


def mix(x: Tensor) -> Tensor:
    """Scatters the bits of int64 numbers (the finaliser of SplitMix64)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ _shift_right(x, shift)) * factor
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shifts as if the numbers had no sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
